/* The SIMD vocabulary on AVX2, FMA and F16C. What each word means: see vec_scalar.h. */
#include "eighths.h"

typedef __m256 vec_f32;
typedef __m256d vec_f64;
typedef __m256 mask_f32;
typedef __m256d mask_f64;
#define LANES_f32 8
#define LANES_f64 4
#define UNROLL FSM_UNROLL
#define IN_STEP 4 /* exponentials in step: as many as the registers hold */

FSM_INLINE void v_prefetch(const void *p) { _mm_prefetch((const char *)p, _MM_HINT_T0); }
FSM_INLINE void v_prefetch_far(const void *p) { _mm_prefetch((const char *)p, _MM_HINT_T1); }
FSM_INLINE void v_fence(void) { _mm_sfence(); }

FSM_INLINE mask_f32 v_first_f32(int n)
{
    return _mm256_castsi256_ps(
        _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)));
}
FSM_INLINE vec_f32 v_set1_f32(float a) { return _mm256_set1_ps(a); }
FSM_INLINE vec_f32 v_load_f32(const float *p) { return _mm256_loadu_ps(p); }
FSM_INLINE void v_store_f32(float *p, vec_f32 a) { _mm256_storeu_ps(p, a); }
FSM_INLINE vec_f32 v_load_tail_f32(const float *p, int n, float fill)
{
    const mask_f32 first = v_first_f32(n);
    return _mm256_blendv_ps(_mm256_set1_ps(fill),
                            _mm256_maskload_ps(p, _mm256_castps_si256(first)), first);
}
FSM_INLINE void v_store_tail_f32(float *p, vec_f32 a, int n)
{
    _mm256_maskstore_ps(p, _mm256_castps_si256(v_first_f32(n)), a);
}
FSM_INLINE void v_stream_f32(float *p, vec_f32 a) { _mm256_stream_ps(p, a); }
FSM_INLINE vec_f32 v_widen_f16(const uint16_t *p)
{
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
}
FSM_INLINE void v_narrow_f16(uint16_t *p, vec_f32 a)
{
    _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
}
FSM_INLINE vec_f32 v_widen_bf16(const uint16_t *p)
{
    const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
FSM_INLINE void v_stream_f16(uint16_t *p, vec_f32 a)
{
    _mm_stream_si128((__m128i *)p, _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
}
FSM_INLINE __m128i narrowed_bf16(vec_f32 a)
{
    const __m256i bits = _mm256_castps_si256(a);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i r = _mm256_add_epi32(_mm256_add_epi32(bits, odd), _mm256_set1_epi32(0x7fff));
    r = _mm256_blendv_epi8(r, _mm256_set1_epi32(0x7fc00000),
                           _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q)));
    r = _mm256_srli_epi32(r, 16);
    r = _mm256_permute4x64_epi64(_mm256_packus_epi32(r, r), 0x08);
    return _mm256_castsi256_si128(r);
}
FSM_INLINE void v_narrow_bf16(uint16_t *p, vec_f32 a)
{
    _mm_storeu_si128((__m128i *)p, narrowed_bf16(a));
}
FSM_INLINE void v_stream_bf16(uint16_t *p, vec_f32 a)
{
    _mm_stream_si128((__m128i *)p, narrowed_bf16(a));
}
FSM_INLINE vec_f32 v_add_f32(vec_f32 a, vec_f32 b) { return _mm256_add_ps(a, b); }
FSM_INLINE vec_f32 v_sub_f32(vec_f32 a, vec_f32 b) { return _mm256_sub_ps(a, b); }
FSM_INLINE vec_f32 v_mul_f32(vec_f32 a, vec_f32 b) { return _mm256_mul_ps(a, b); }
FSM_INLINE vec_f32 v_fma_f32(vec_f32 a, vec_f32 b, vec_f32 c) { return _mm256_fmadd_ps(a, b, c); }
FSM_INLINE vec_f32 v_max_f32(vec_f32 a, vec_f32 b) { return _mm256_max_ps(a, b); }
FSM_INLINE mask_f32 v_not_lt_f32(vec_f32 a, vec_f32 b) { return _mm256_cmp_ps(a, b, _CMP_NLT_UQ); }
FSM_INLINE mask_f32 v_ne_f32(vec_f32 a, vec_f32 b) { return _mm256_cmp_ps(a, b, _CMP_NEQ_UQ); }
FSM_INLINE mask_f32 v_lt_f32(vec_f32 a, vec_f32 b) { return _mm256_cmp_ps(a, b, _CMP_LT_OQ); }
FSM_INLINE mask_f32 v_unordered_f32(vec_f32 a, vec_f32 b)
{
    return _mm256_cmp_ps(a, b, _CMP_UNORD_Q);
}
FSM_INLINE uint32_t v_bits_f32(mask_f32 m) { return (uint32_t)_mm256_movemask_ps(m); }
FSM_INLINE int v_count_f32(mask_f32 m) { return (int)_mm_popcnt_u32(v_bits_f32(m)); }
FSM_INLINE vec_f32 v_keep_f32(mask_f32 m, vec_f32 a) { return _mm256_and_ps(m, a); }
FSM_INLINE vec_f32 v_select_f32(mask_f32 m, vec_f32 a, vec_f32 b)
{
    return _mm256_blendv_ps(b, a, m);
}
FSM_INLINE vec_f32 v_power_f32(vec_f32 n)
{
    const __m256i u = _mm256_castps_si256(n);
    const __m256i part =
        _mm256_permutevar8x32_epi32(_mm256_loadu_si256((const __m256i *)fsm_eighths_f32), u);
    return _mm256_castsi256_ps(_mm256_add_epi32(part, _mm256_slli_epi32(u, 20)));
}
FSM_INLINE float v_hmax_f32(vec_f32 a)
{
    __m128 b = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_max_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_max_ss(b, _mm_movehdup_ps(b)));
}

FSM_INLINE mask_f64 v_first_f64(int n)
{
    return _mm256_castsi256_pd(
        _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3)));
}
FSM_INLINE vec_f64 v_set1_f64(double a) { return _mm256_set1_pd(a); }
FSM_INLINE vec_f64 v_load_f64(const double *p) { return _mm256_loadu_pd(p); }
FSM_INLINE void v_store_f64(double *p, vec_f64 a) { _mm256_storeu_pd(p, a); }
FSM_INLINE vec_f64 v_load_tail_f64(const double *p, int n, double fill)
{
    const mask_f64 first = v_first_f64(n);
    return _mm256_blendv_pd(_mm256_set1_pd(fill),
                            _mm256_maskload_pd(p, _mm256_castpd_si256(first)), first);
}
FSM_INLINE void v_store_tail_f64(double *p, vec_f64 a, int n)
{
    _mm256_maskstore_pd(p, _mm256_castpd_si256(v_first_f64(n)), a);
}
FSM_INLINE void v_stream_f64(double *p, vec_f64 a) { _mm256_stream_pd(p, a); }
FSM_INLINE vec_f64 v_add_f64(vec_f64 a, vec_f64 b) { return _mm256_add_pd(a, b); }
FSM_INLINE void v_accumulate_f32(vec_f64 *sum, vec_f32 a)
{
    sum[0] = v_add_f64(sum[0], _mm256_cvtps_pd(_mm256_castps256_ps128(a)));
    sum[1] = v_add_f64(sum[1], _mm256_cvtps_pd(_mm256_extractf128_ps(a, 1)));
}
FSM_INLINE vec_f64 v_sub_f64(vec_f64 a, vec_f64 b) { return _mm256_sub_pd(a, b); }
FSM_INLINE vec_f64 v_mul_f64(vec_f64 a, vec_f64 b) { return _mm256_mul_pd(a, b); }
FSM_INLINE vec_f64 v_fma_f64(vec_f64 a, vec_f64 b, vec_f64 c) { return _mm256_fmadd_pd(a, b, c); }
FSM_INLINE vec_f64 v_max_f64(vec_f64 a, vec_f64 b) { return _mm256_max_pd(a, b); }
FSM_INLINE mask_f64 v_not_lt_f64(vec_f64 a, vec_f64 b) { return _mm256_cmp_pd(a, b, _CMP_NLT_UQ); }
FSM_INLINE mask_f64 v_ne_f64(vec_f64 a, vec_f64 b) { return _mm256_cmp_pd(a, b, _CMP_NEQ_UQ); }
FSM_INLINE mask_f64 v_lt_f64(vec_f64 a, vec_f64 b) { return _mm256_cmp_pd(a, b, _CMP_LT_OQ); }
FSM_INLINE mask_f64 v_unordered_f64(vec_f64 a, vec_f64 b)
{
    return _mm256_cmp_pd(a, b, _CMP_UNORD_Q);
}
FSM_INLINE uint32_t v_bits_f64(mask_f64 m) { return (uint32_t)_mm256_movemask_pd(m); }
FSM_INLINE int v_count_f64(mask_f64 m) { return (int)_mm_popcnt_u32(v_bits_f64(m)); }
FSM_INLINE vec_f64 v_keep_f64(mask_f64 m, vec_f64 a) { return _mm256_and_pd(m, a); }
FSM_INLINE vec_f64 v_select_f64(mask_f64 m, vec_f64 a, vec_f64 b)
{
    return _mm256_blendv_pd(b, a, m);
}
FSM_INLINE vec_f64 v_power_f64(vec_f64 n)
{
    static const uint32_t high[8] = {FSM_EIGHTHS_F64(FSM_HIGH)};
    static const uint32_t low[8] = {FSM_EIGHTHS_F64(FSM_LOW)};
    const __m256i u = _mm256_castpd_si256(n), twice = _mm256_shuffle_epi32(u, 0xa0);
    const __m256i part = _mm256_blend_epi32(
        _mm256_permutevar8x32_epi32(_mm256_loadu_si256((const __m256i *)low), twice),
        _mm256_permutevar8x32_epi32(_mm256_loadu_si256((const __m256i *)high), twice), 0xaa);
    return _mm256_castsi256_pd(_mm256_add_epi64(part, _mm256_slli_epi64(u, 49)));
}
FSM_INLINE vec_f64 v_exponent_f64(vec_f64 a)
{
    /* As the low bits of 2^52: then it is exact in double. */
    const __m256i field = _mm256_srli_epi64(_mm256_castpd_si256(a), 52);
    const __m256d n = _mm256_or_pd(_mm256_castsi256_pd(field), _mm256_set1_pd(0x1p52));
    return _mm256_sub_pd(n, _mm256_set1_pd(0x1p52 + 1023.0));
}
FSM_INLINE vec_f64 v_significand_f64(vec_f64 a)
{
    const __m256d fraction =
        _mm256_castsi256_pd(_mm256_set1_epi64x(INT64_C(0x000fffffffffffff)));
    return _mm256_or_pd(_mm256_and_pd(a, fraction), _mm256_set1_pd(1.0));
}
FSM_INLINE double v_hmax_f64(vec_f64 a)
{
    const __m128d b = _mm_max_pd(_mm256_castpd256_pd128(a), _mm256_extractf128_pd(a, 1));
    return _mm_cvtsd_f64(_mm_max_sd(b, _mm_unpackhi_pd(b, b)));
}
FSM_INLINE double v_hsum_f64(vec_f64 a)
{
    const __m128d b = _mm_add_pd(_mm256_castpd256_pd128(a), _mm256_extractf128_pd(a, 1));
    return _mm_cvtsd_f64(_mm_add_sd(b, _mm_unpackhi_pd(b, b)));
}
FSM_INLINE vec_f64 v_div_f64(vec_f64 a, vec_f64 b) { return _mm256_div_pd(a, b); }
FSM_INLINE void v_accumulate_f64(vec_f64 *sum, vec_f64 a) { sum[0] = v_add_f64(sum[0], a); }
FSM_INLINE vec_f64 v_join_f64(const vec_f64 *a) { return a[0]; }
FSM_INLINE vec_f32 v_join_f32(const vec_f64 *a)
{
    return _mm256_set_m128(_mm256_cvtpd_ps(a[1]), _mm256_cvtpd_ps(a[0]));
}
/* In every 128 bits, four columns of four rows, or back. */
FSM_INLINE void fsm_transpose_fours(vec_f32 *v)
{
    const vec_f32 a0 = _mm256_unpacklo_ps(v[0], v[1]), a1 = _mm256_unpackhi_ps(v[0], v[1]);
    const vec_f32 a2 = _mm256_unpacklo_ps(v[2], v[3]), a3 = _mm256_unpackhi_ps(v[2], v[3]);
    v[0] = _mm256_shuffle_ps(a0, a2, 0x44);
    v[1] = _mm256_shuffle_ps(a0, a2, 0xee);
    v[2] = _mm256_shuffle_ps(a1, a3, 0x44);
    v[3] = _mm256_shuffle_ps(a1, a3, 0xee);
}
FSM_INLINE void v_transpose_f32(vec_f32 *v)
{
    fsm_transpose_fours(v);
    fsm_transpose_fours(v + 4);
    UNROLL
    for (int i = 0; i < 4; ++i) {
        const vec_f32 low = v[i], high = v[i + 4];
        v[i] = _mm256_permute2f128_ps(low, high, 0x20);
        v[i + 4] = _mm256_permute2f128_ps(low, high, 0x31);
    }
}
#define FOURS_f32 1
FSM_INLINE void v_load_fours_f32(const float *p, int64_t stride, vec_f32 *v)
{
    UNROLL
    for (int k = 0; k < 4; ++k)
        v[k] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(p + k * stride)),
                                    _mm_loadu_ps(p + (k + 4) * stride), 1);
    fsm_transpose_fours(v);
}
FSM_INLINE void v_store_fours_f32(float *p, int64_t stride, vec_f32 *v)
{
    fsm_transpose_fours(v);
    UNROLL
    for (int k = 0; k < 4; ++k)
        _mm_storeu_ps(p + k * stride, _mm256_castps256_ps128(v[k]));
    UNROLL
    for (int k = 0; k < 4; ++k)
        _mm_storeu_ps(p + (k + 4) * stride, _mm256_extractf128_ps(v[k], 1));
}
#define FITTED_f32 (1 << 2 | 1 << 4 | 1 << 8)
FSM_INLINE void v_columns_f32(vec_f32 *v, int n)
{
    if (n == 2) {
        const vec_f32 a = v[0];
        v[0] = _mm256_shuffle_ps(a, v[1], 0x88);
        v[1] = _mm256_shuffle_ps(a, v[1], 0xdd);
    } else if (n == 4) {
        fsm_transpose_fours(v);
    } else {
        v_transpose_f32(v);
    }
}
FSM_INLINE void v_rows_f32(vec_f32 *v, int n)
{
    if (n == 2) {
        const vec_f32 a = v[0];
        v[0] = _mm256_unpacklo_ps(a, v[1]);
        v[1] = _mm256_unpackhi_ps(a, v[1]);
    } else {
        v_columns_f32(v, n);
    }
}
FSM_INLINE void v_transpose_f64(vec_f64 *v)
{
    vec_f64 a[4];
    UNROLL
    for (int i = 0; i < 4; i += 2) {
        a[i] = _mm256_unpacklo_pd(v[i], v[i + 1]);
        a[i + 1] = _mm256_unpackhi_pd(v[i], v[i + 1]);
    }
    UNROLL
    for (int i = 0; i < 2; ++i) {
        v[i] = _mm256_permute2f128_pd(a[i], a[i + 2], 0x20);
        v[i + 2] = _mm256_permute2f128_pd(a[i], a[i + 2], 0x31);
    }
}
FSM_INLINE double s_fma(double a, double b, double c)
{
#if defined(FSM_MSVC)
    return _mm_cvtsd_f64(_mm_fmadd_sd(_mm_set_sd(a), _mm_set_sd(b), _mm_set_sd(c)));
#else /* without the moves of _mm_set_sd, of which valgrind does not know all forms */
    return __builtin_fma(a, b, c);
#endif
}
#define v_places_f32 fsm_places
#define v_places_f64 fsm_places
FSM_SQUEEZE_BY_BITS(v_squeeze_f32, float)
FSM_SQUEEZE_BY_BITS(v_squeeze_f64, double)
