/* The SIMD vocabulary at width 1, in portable C: the meaning of every word, and the fallback.
 *
 *   v_load_tail(p, n, fill)   the first n of the lanes from memory, `fill` in the rest; 0 <= n < LANES
 *   v_fma(a, b, c)            a*b + c, rounded once
 *   v_max(a, b)               the larger; b where one of them is NaN
 *   v_first(n)                a mask of the first n lanes; 0 <= n < LANES
 *   v_stream(p, a)            a store around the caches, to an address aligned to the vector; a
 *                             v_fence() orders such stores before what follows
 *   v_prefetch, ..far         asks for a cache line, into the first cache or into the second
 *   v_widen_f16, v_widen_bf16 LANES_f32 numbers of 16 bits from memory, as floats
 *   v_narrow_f16, ..bf16      the way back, rounding to nearest even; v_stream_f16, ..bf16 as v_stream
 *   v_lt                      a comparison that is false where a or b is NaN
 *   v_unordered               whether a or b is NaN
 *   v_not_lt, v_ne            comparisons that are true where a or b is NaN
 *   v_bits(m), v_count(m)     a mask as an integer, lane 0 lowest; how many of its lanes are set
 *   v_places(id, first, bits) first + the numbers of the lanes that are set in `bits`, one after
 *                             another in id[], where a whole vector may be written. Returns how many
 *   v_squeeze(value, id, weight, from, to, bits)  moves what is set in `bits` of the lanes from `from`
 *                             on to the places from `to` on, to <= from, in all three arrays; whole
 *                             vectors may be read and written. Returns how many
 *   v_keep(m, a)              a where the mask is set, +0 elsewhere
 *   v_power(n)                c*2^(k/8 - bias), bias that of an exponent and c of eighths.h, where
 *                             the low bits of n are k, 8 < k < 16*bias
 *   v_exponent_f64, v_significand_f64(a)
 *                             k and m of a = 2^k * m, 1 <= m < 2, for a normal a > 0
 *   v_accumulate(s, a)        adds the lanes of a to the one or two vectors of doubles at s
 *   v_join(s)                 one or two vectors of doubles, rounded, as one vector
 *   v_transpose(v)            as many vectors as one has lanes, as a square matrix
 *   FOURS, v_load_fours, v_store_fours(p, stride, v)
 *                             where it is 1: the first four entries of as many rows as lanes, as
 *                             four vectors; stored row by row, v is not left as it was
 *   FITTED, v_columns, v_rows(v, n)
 *                             where bit n is set: n vectors that hold rows of n entries, one
 *                             behind the other, to their columns, in which rows are in an order of
 *                             their own, and back
 *   v_hsum_f64                lane j + lane j + LANES/2, and so on, halving
 *   s_fma                     v_fma_f64 on a single double
 */
#include "eighths.h"

typedef float vec_f32;
typedef double vec_f64;
typedef int mask_f32;
typedef int mask_f64;
#define LANES_f32 1
#define LANES_f64 1

/* The C library's: one instruction where all CPUs of an architecture have it, a call where some do
 * (glibc chooses at load time), correctly rounded in software elsewhere. */
FSM_INLINE double v_fma_f64(double a, double b, double c) { return fma(a, b, c); }
FSM_INLINE float v_fma_f32(float a, float b, float c)
{
#if defined(FSM_X86)
    /* These kernels are for CPUs that have no fma, and the C library's takes there 40 times as long.
     * The product of floats is exact in double. The sum, rounded to double and then to float, is as
     * if rounded once unless it lies half way between two floats, or among the subnormal ones. */
    const double sum = (double)a * (double)b + (double)c;
    uint64_t bits;
    memcpy(&bits, &sum, sizeof bits);
    if ((bits & 0x1fffffff) != 0x10000000 && fabs(sum) >= 0x1p-126)
        return (float)sum;
#endif
    return fmaf(a, b, c);
}
#define UNROLL /* there is nothing to keep in registers, and code would grow a hundredfold */
#define IN_STEP 1 /* exponentials in step: as many as the registers hold */

FSM_INLINE void v_prefetch(const void *p) { (void)p; }
FSM_INLINE void v_prefetch_far(const void *p) { (void)p; }
FSM_INLINE void v_fence(void) {}

FSM_INLINE float v_set1_f32(float a) { return a; }
FSM_INLINE float v_load_f32(const float *p) { return *p; }
FSM_INLINE void v_store_f32(float *p, float a) { *p = a; }
FSM_INLINE float v_load_tail_f32(const float *p, int n, float fill)
{
    (void)p, (void)n;
    return fill;
}
FSM_INLINE void v_store_tail_f32(float *p, float a, int n) { (void)p, (void)a, (void)n; }
FSM_INLINE void v_stream_f32(float *p, float a) { *p = a; }
FSM_INLINE int v_first_f32(int n) { return n > 0; }
FSM_INLINE float v_widen_f16(const uint16_t *p) { return fsm_float_of_half(*p); }
FSM_INLINE void v_narrow_f16(uint16_t *p, float a) { *p = fsm_half_of_float(a); }
FSM_INLINE float v_widen_bf16(const uint16_t *p) { return fsm_float_of_bfloat(*p); }
FSM_INLINE void v_narrow_bf16(uint16_t *p, float a) { *p = fsm_bfloat_of_float(a); }
FSM_INLINE void v_stream_f16(uint16_t *p, float a) { v_narrow_f16(p, a); }
FSM_INLINE void v_stream_bf16(uint16_t *p, float a) { v_narrow_bf16(p, a); }
FSM_INLINE float v_add_f32(float a, float b) { return a + b; }
FSM_INLINE float v_sub_f32(float a, float b) { return a - b; }
FSM_INLINE float v_mul_f32(float a, float b) { return a * b; }
FSM_INLINE float v_max_f32(float a, float b) { return a > b ? a : b; }
FSM_INLINE int v_not_lt_f32(float a, float b) { return !(a < b); }
FSM_INLINE int v_ne_f32(float a, float b) { return a != b; }
FSM_INLINE int v_lt_f32(float a, float b) { return a < b; }
FSM_INLINE int v_unordered_f32(float a, float b) { return a != a || b != b; }
FSM_INLINE uint32_t v_bits_f32(int m) { return (uint32_t)m; }
FSM_INLINE int v_count_f32(int m) { return m; }
FSM_INLINE float v_keep_f32(int m, float a) { return m ? a : 0.0f; }
FSM_INLINE float v_select_f32(int m, float a, float b) { return m ? a : b; }
FSM_INLINE float v_power_f32(float n)
{
    uint32_t u;
    memcpy(&u, &n, sizeof u);
    u = fsm_eighths_f32[u % 8] + (u << 20);
    memcpy(&n, &u, sizeof n);
    return n;
}
FSM_INLINE float v_hmax_f32(float a) { return a; }
FSM_INLINE void v_accumulate_f32(double *sum, float a) { *sum += (double)a; }

FSM_INLINE double v_set1_f64(double a) { return a; }
FSM_INLINE double v_load_f64(const double *p) { return *p; }
FSM_INLINE void v_store_f64(double *p, double a) { *p = a; }
FSM_INLINE double v_load_tail_f64(const double *p, int n, double fill)
{
    (void)p, (void)n;
    return fill;
}
FSM_INLINE void v_store_tail_f64(double *p, double a, int n) { (void)p, (void)a, (void)n; }
FSM_INLINE void v_stream_f64(double *p, double a) { *p = a; }
FSM_INLINE int v_first_f64(int n) { return n > 0; }
FSM_INLINE double v_add_f64(double a, double b) { return a + b; }
FSM_INLINE double v_sub_f64(double a, double b) { return a - b; }
FSM_INLINE double v_mul_f64(double a, double b) { return a * b; }
FSM_INLINE double v_max_f64(double a, double b) { return a > b ? a : b; }
FSM_INLINE int v_not_lt_f64(double a, double b) { return !(a < b); }
FSM_INLINE int v_ne_f64(double a, double b) { return a != b; }
FSM_INLINE int v_lt_f64(double a, double b) { return a < b; }
FSM_INLINE int v_unordered_f64(double a, double b) { return a != a || b != b; }
FSM_INLINE uint32_t v_bits_f64(int m) { return (uint32_t)m; }
FSM_INLINE int v_count_f64(int m) { return m; }
FSM_INLINE double v_keep_f64(int m, double a) { return m ? a : 0.0; }
FSM_INLINE double v_select_f64(int m, double a, double b) { return m ? a : b; }
FSM_INLINE double v_power_f64(double n)
{
    static const uint64_t eighths[8] = {FSM_EIGHTHS_F64(FSM_WHOLE)};
    uint64_t u;
    memcpy(&u, &n, sizeof u);
    u = eighths[u % 8] + (u << 49);
    memcpy(&n, &u, sizeof n);
    return n;
}
FSM_INLINE double v_exponent_f64(double a)
{
    uint64_t u;
    memcpy(&u, &a, sizeof u);
    return (double)(int)(u >> 52) - 1023.0;
}
FSM_INLINE double v_significand_f64(double a)
{
    uint64_t u;
    memcpy(&u, &a, sizeof u);
    u = (u & UINT64_C(0x000fffffffffffff)) | UINT64_C(0x3ff0000000000000);
    memcpy(&a, &u, sizeof a);
    return a;
}
FSM_INLINE double v_hmax_f64(double a) { return a; }
FSM_INLINE double v_hsum_f64(double a) { return a; }
FSM_INLINE double v_div_f64(double a, double b) { return a / b; }
FSM_INLINE void v_accumulate_f64(double *sum, double a) { *sum += a; }
FSM_INLINE double v_join_f64(const double *a) { return *a; }
FSM_INLINE float v_join_f32(const double *a) { return (float)*a; }
FSM_INLINE void v_transpose_f32(float *v) { (void)v; }
FSM_INLINE void v_transpose_f64(double *v) { (void)v; }
FSM_INLINE double s_fma(double a, double b, double c) { return v_fma_f64(a, b, c); }
#define v_places_f32 fsm_places
#define v_places_f64 fsm_places
FSM_SQUEEZE_BY_BITS(v_squeeze_f32, float)
FSM_SQUEEZE_BY_BITS(v_squeeze_f64, double)
