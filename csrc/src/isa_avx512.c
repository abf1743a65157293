/* The kernels on AVX-512. */
#include "internal.h"

#if defined(FSM_X86)
#include "simd/x86.h"
FSM_TARGET_BEGIN("avx2,fma,f16c,popcnt,avx512f,avx512dq,avx512bw,avx512vl")
#include "simd/vec_avx512.h"
#define FSM_TABLE fsm_table_avx512
#include "instantiate.inc"
FSM_TARGET_END
#endif
