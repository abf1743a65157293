/* The kernels on 64-bit Arm's NEON. */
#include "internal.h"

#if defined(FSM_ARM64)
#include <arm_neon.h>
#include "simd/vec_neon.h"
#define FSM_TABLE fsm_table_neon
#include "instantiate.inc"
#endif
