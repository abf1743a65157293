/* The kernels on AVX2, FMA and F16C. */
#include "internal.h"

#if defined(FSM_X86)
#include "simd/x86.h"
FSM_TARGET_BEGIN("avx2,fma,f16c,popcnt")
#include "simd/vec_avx2.h"
#define FSM_TABLE fsm_table_avx2
#include "instantiate.inc"
FSM_TARGET_END
#endif
