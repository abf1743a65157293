/* The kernels in portable C. */
#include "internal.h"

#include "simd/vec_scalar.h"
#define FSM_TABLE fsm_table_scalar
#include "instantiate.inc"
