/* The SIMD vocabulary on 64-bit Arm's NEON. What each word means: see vec_scalar.h. */
#include "eighths.h"

typedef float32x4_t vec_f32;
typedef float64x2_t vec_f64;
typedef uint32x4_t mask_f32;
typedef uint64x2_t mask_f64;
#define LANES_f32 4
#define LANES_f64 2
#define UNROLL FSM_UNROLL
#define IN_STEP 4 /* exponentials in step: as many as the registers hold */

FSM_INLINE void v_prefetch(const void *p) { __builtin_prefetch(p); }
FSM_INLINE void v_prefetch_far(const void *p) { __builtin_prefetch(p, 0, 2); }
FSM_INLINE void v_fence(void) {}

FSM_INLINE uint32x4_t v_first_f32(int n)
{
    const int32_t lanes[LANES_f32] = {0, 1, 2, 3};
    return vcltq_s32(vld1q_s32(lanes), vdupq_n_s32(n));
}
FSM_INLINE uint64x2_t v_first_f64(int n)
{
    const int64_t lanes[LANES_f64] = {0, 1};
    return vcltq_s64(vld1q_s64(lanes), vdupq_n_s64(n));
}

FSM_INLINE vec_f32 v_set1_f32(float a) { return vdupq_n_f32(a); }
FSM_INLINE vec_f32 v_load_f32(const float *p) { return vld1q_f32(p); }
FSM_INLINE void v_store_f32(float *p, vec_f32 a) { vst1q_f32(p, a); }
FSM_INLINE vec_f32 v_load_tail_f32(const float *p, int n, float fill)
{
    float lanes[LANES_f32];
    for (int i = 0; i < LANES_f32; ++i)
        lanes[i] = i < n ? p[i] : fill;
    return vld1q_f32(lanes);
}
FSM_INLINE void v_store_tail_f32(float *p, vec_f32 a, int n)
{
    float lanes[LANES_f32];
    vst1q_f32(lanes, a);
    for (int i = 0; i < n; ++i)
        p[i] = lanes[i];
}
FSM_INLINE void v_stream_f32(float *p, vec_f32 a) { vst1q_f32(p, a); }
FSM_INLINE vec_f32 v_widen_f16(const uint16_t *p)
{
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)));
}
FSM_INLINE void v_narrow_f16(uint16_t *p, vec_f32 a)
{
    vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(a)));
}
FSM_INLINE vec_f32 v_widen_bf16(const uint16_t *p)
{
    return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16));
}
FSM_INLINE void v_narrow_bf16(uint16_t *p, vec_f32 a)
{
    const uint32x4_t bits = vreinterpretq_u32_f32(a);
    const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    uint32x4_t r = vaddq_u32(vaddq_u32(bits, odd), vdupq_n_u32(0x7fff));
    r = vbslq_u32(vceqq_f32(a, a), r, vdupq_n_u32(0x7fc00000));
    vst1_u16(p, vshrn_n_u32(r, 16));
}
FSM_INLINE void v_stream_f16(uint16_t *p, vec_f32 a) { v_narrow_f16(p, a); }
FSM_INLINE void v_stream_bf16(uint16_t *p, vec_f32 a) { v_narrow_bf16(p, a); }
FSM_INLINE vec_f32 v_add_f32(vec_f32 a, vec_f32 b) { return vaddq_f32(a, b); }
FSM_INLINE vec_f32 v_sub_f32(vec_f32 a, vec_f32 b) { return vsubq_f32(a, b); }
FSM_INLINE vec_f32 v_mul_f32(vec_f32 a, vec_f32 b) { return vmulq_f32(a, b); }
FSM_INLINE vec_f32 v_fma_f32(vec_f32 a, vec_f32 b, vec_f32 c) { return vfmaq_f32(c, a, b); }
FSM_INLINE vec_f32 v_max_f32(vec_f32 a, vec_f32 b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
FSM_INLINE mask_f32 v_not_lt_f32(vec_f32 a, vec_f32 b) { return vmvnq_u32(vcltq_f32(a, b)); }
FSM_INLINE mask_f32 v_ne_f32(vec_f32 a, vec_f32 b) { return vmvnq_u32(vceqq_f32(a, b)); }
FSM_INLINE mask_f32 v_lt_f32(vec_f32 a, vec_f32 b) { return vcltq_f32(a, b); }
FSM_INLINE mask_f32 v_unordered_f32(vec_f32 a, vec_f32 b)
{
    return vmvnq_u32(vandq_u32(vceqq_f32(a, a), vceqq_f32(b, b)));
}
FSM_INLINE uint32_t v_bits_f32(mask_f32 m)
{
    const uint32_t lanes[LANES_f32] = {1, 2, 4, 8};
    return vaddvq_u32(vandq_u32(m, vld1q_u32(lanes)));
}
FSM_INLINE int v_count_f32(mask_f32 m) { return (int)vaddvq_u32(vshrq_n_u32(m, 31)); }
FSM_INLINE vec_f32 v_keep_f32(mask_f32 m, vec_f32 a)
{
    return vreinterpretq_f32_u32(vandq_u32(m, vreinterpretq_u32_f32(a)));
}
FSM_INLINE vec_f32 v_select_f32(mask_f32 m, vec_f32 a, vec_f32 b) { return vbslq_f32(m, a, b); }
FSM_INLINE vec_f32 v_power_f32(vec_f32 n)
{
    const uint32x4_t u = vreinterpretq_u32_f32(n);
    const uint8x16x2_t table = {{vreinterpretq_u8_u32(vld1q_u32(fsm_eighths_f32)),
                                 vreinterpretq_u8_u32(vld1q_u32(fsm_eighths_f32 + 4))}};
    const uint32x4_t bytes = /* of entry u % 8 */
        vmlaq_n_u32(vdupq_n_u32(0x03020100), vandq_u32(u, vdupq_n_u32(7)), 0x04040404);
    const uint8x16_t part = vqtbl2q_u8(table, vreinterpretq_u8_u32(bytes));
    return vreinterpretq_f32_u32(vaddq_u32(vreinterpretq_u32_u8(part), vshlq_n_u32(u, 20)));
}
FSM_INLINE float v_hmax_f32(vec_f32 a) { return vmaxnmvq_f32(a); }

FSM_INLINE vec_f64 v_set1_f64(double a) { return vdupq_n_f64(a); }
FSM_INLINE vec_f64 v_load_f64(const double *p) { return vld1q_f64(p); }
FSM_INLINE void v_store_f64(double *p, vec_f64 a) { vst1q_f64(p, a); }
FSM_INLINE vec_f64 v_load_tail_f64(const double *p, int n, double fill)
{
    return n > 0 ? vsetq_lane_f64(p[0], vdupq_n_f64(fill), 0) : vdupq_n_f64(fill);
}
FSM_INLINE void v_store_tail_f64(double *p, vec_f64 a, int n)
{
    if (n > 0)
        vst1q_lane_f64(p, a, 0);
}
FSM_INLINE void v_stream_f64(double *p, vec_f64 a) { vst1q_f64(p, a); }
FSM_INLINE vec_f64 v_add_f64(vec_f64 a, vec_f64 b) { return vaddq_f64(a, b); }
FSM_INLINE void v_accumulate_f32(vec_f64 *sum, vec_f32 a)
{
    sum[0] = v_add_f64(sum[0], vcvt_f64_f32(vget_low_f32(a)));
    sum[1] = v_add_f64(sum[1], vcvt_high_f64_f32(a));
}
FSM_INLINE vec_f64 v_sub_f64(vec_f64 a, vec_f64 b) { return vsubq_f64(a, b); }
FSM_INLINE vec_f64 v_mul_f64(vec_f64 a, vec_f64 b) { return vmulq_f64(a, b); }
FSM_INLINE vec_f64 v_fma_f64(vec_f64 a, vec_f64 b, vec_f64 c) { return vfmaq_f64(c, a, b); }
FSM_INLINE vec_f64 v_max_f64(vec_f64 a, vec_f64 b) { return vbslq_f64(vcgtq_f64(a, b), a, b); }
FSM_INLINE mask_f64 v_not_lt_f64(vec_f64 a, vec_f64 b)
{
    return veorq_u64(vcltq_f64(a, b), vdupq_n_u64(~UINT64_C(0)));
}
FSM_INLINE mask_f64 v_ne_f64(vec_f64 a, vec_f64 b)
{
    return veorq_u64(vceqq_f64(a, b), vdupq_n_u64(~UINT64_C(0)));
}
FSM_INLINE mask_f64 v_lt_f64(vec_f64 a, vec_f64 b) { return vcltq_f64(a, b); }
FSM_INLINE mask_f64 v_unordered_f64(vec_f64 a, vec_f64 b)
{
    return veorq_u64(vandq_u64(vceqq_f64(a, a), vceqq_f64(b, b)), vdupq_n_u64(~UINT64_C(0)));
}
FSM_INLINE uint32_t v_bits_f64(mask_f64 m)
{
    return (uint32_t)(vgetq_lane_u64(m, 0) & 1) | (uint32_t)(vgetq_lane_u64(m, 1) & 2);
}
FSM_INLINE int v_count_f64(mask_f64 m) { return (int)vaddvq_u64(vshrq_n_u64(m, 63)); }
FSM_INLINE vec_f64 v_keep_f64(mask_f64 m, vec_f64 a)
{
    return vreinterpretq_f64_u64(vandq_u64(m, vreinterpretq_u64_f64(a)));
}
FSM_INLINE vec_f64 v_select_f64(mask_f64 m, vec_f64 a, vec_f64 b) { return vbslq_f64(m, a, b); }
FSM_INLINE vec_f64 v_power_f64(vec_f64 n)
{
    static const uint64_t eighths[8] = {FSM_EIGHTHS_F64(FSM_WHOLE)};
    const uint64x2_t u = vreinterpretq_u64_f64(n);
    const uint64x2_t part = vcombine_u64(vld1_u64(eighths + vgetq_lane_u64(u, 0) % 8),
                                         vld1_u64(eighths + vgetq_lane_u64(u, 1) % 8));
    return vreinterpretq_f64_u64(vaddq_u64(part, vshlq_n_u64(u, 49)));
}
FSM_INLINE vec_f64 v_exponent_f64(vec_f64 a)
{
    const uint64x2_t field = vshrq_n_u64(vreinterpretq_u64_f64(a), 52);
    return vsubq_f64(vcvtq_f64_u64(field), vdupq_n_f64(1023.0));
}
FSM_INLINE vec_f64 v_significand_f64(vec_f64 a)
{
    const uint64x2_t fraction =
        vandq_u64(vreinterpretq_u64_f64(a), vdupq_n_u64(UINT64_C(0x000fffffffffffff)));
    return vreinterpretq_f64_u64(
        vorrq_u64(fraction, vreinterpretq_u64_f64(vdupq_n_f64(1.0))));
}
FSM_INLINE double v_hmax_f64(vec_f64 a) { return vmaxnmvq_f64(a); }
FSM_INLINE double v_hsum_f64(vec_f64 a) { return vgetq_lane_f64(a, 0) + vgetq_lane_f64(a, 1); }
FSM_INLINE vec_f64 v_div_f64(vec_f64 a, vec_f64 b) { return vdivq_f64(a, b); }
FSM_INLINE void v_accumulate_f64(vec_f64 *sum, vec_f64 a) { sum[0] = v_add_f64(sum[0], a); }
FSM_INLINE vec_f64 v_join_f64(const vec_f64 *a) { return a[0]; }
FSM_INLINE vec_f32 v_join_f32(const vec_f64 *a)
{
    return vcombine_f32(vcvt_f32_f64(a[0]), vcvt_f32_f64(a[1]));
}
FSM_INLINE void v_transpose_f64(vec_f64 *v)
{
    const vec_f64 low = vzip1q_f64(v[0], v[1]);
    v[1] = vzip2q_f64(v[0], v[1]);
    v[0] = low;
}
FSM_INLINE void v_transpose_f32(vec_f32 *v)
{
    vec_f64 a[4];
    UNROLL
    for (int i = 0; i < 4; i += 2) {
        a[i] = vreinterpretq_f64_f32(vzip1q_f32(v[i], v[i + 1]));
        a[i + 1] = vreinterpretq_f64_f32(vzip2q_f32(v[i], v[i + 1]));
    }
    UNROLL
    for (int i = 0; i < 2; ++i) {
        v[2 * i] = vreinterpretq_f32_f64(vzip1q_f64(a[i], a[i + 2]));
        v[2 * i + 1] = vreinterpretq_f32_f64(vzip2q_f64(a[i], a[i + 2]));
    }
}
FSM_INLINE double s_fma(double a, double b, double c) { return __builtin_fma(a, b, c); }
#define v_places_f32 fsm_places
#define v_places_f64 fsm_places
FSM_SQUEEZE_BY_BITS(v_squeeze_f32, float)
FSM_SQUEEZE_BY_BITS(v_squeeze_f64, double)
