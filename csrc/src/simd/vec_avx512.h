/* The SIMD vocabulary on AVX-512 (F, DQ, BW, VL) and F16C. What each word means: see vec_scalar.h. */
#include "eighths.h"

typedef __m512 vec_f32;
typedef __m512d vec_f64;
typedef __mmask16 mask_f32;
typedef __mmask8 mask_f64;
#define LANES_f32 16
#define LANES_f64 8
#define UNROLL FSM_UNROLL
#define IN_STEP 4 /* exponentials in step: with more of them registers are spilled */

FSM_INLINE void v_prefetch(const void *p) { _mm_prefetch((const char *)p, _MM_HINT_T0); }
FSM_INLINE void v_prefetch_far(const void *p) { _mm_prefetch((const char *)p, _MM_HINT_T1); }
FSM_INLINE void v_fence(void) { _mm_sfence(); }

FSM_INLINE vec_f32 v_set1_f32(float a) { return _mm512_set1_ps(a); }
FSM_INLINE vec_f32 v_load_f32(const float *p) { return _mm512_loadu_ps(p); }
FSM_INLINE void v_store_f32(float *p, vec_f32 a) { _mm512_storeu_ps(p, a); }
FSM_INLINE vec_f32 v_load_tail_f32(const float *p, int n, float fill)
{
    return _mm512_mask_loadu_ps(_mm512_set1_ps(fill), (mask_f32)((1u << n) - 1), p);
}
FSM_INLINE void v_store_tail_f32(float *p, vec_f32 a, int n)
{
    _mm512_mask_storeu_ps(p, (mask_f32)((1u << n) - 1), a);
}
FSM_INLINE void v_stream_f32(float *p, vec_f32 a) { _mm512_stream_ps(p, a); }
FSM_INLINE mask_f32 v_first_f32(int n) { return (mask_f32)((1u << n) - 1); }
FSM_INLINE vec_f32 v_widen_f16(const uint16_t *p)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}
FSM_INLINE void v_narrow_f16(uint16_t *p, vec_f32 a)
{
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
}
FSM_INLINE vec_f32 v_widen_bf16(const uint16_t *p)
{
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
FSM_INLINE void v_stream_f16(uint16_t *p, vec_f32 a)
{
    _mm256_stream_si256((__m256i *)p, _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
}
FSM_INLINE __m256i narrowed_bf16(vec_f32 a)
{
    const __m512i bits = _mm512_castps_si512(a);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i r = _mm512_add_epi32(_mm512_add_epi32(bits, odd), _mm512_set1_epi32(0x7fff));
    r = _mm512_mask_mov_epi32(r, _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q),
                              _mm512_set1_epi32(0x7fc00000));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(r, 16));
}
FSM_INLINE void v_narrow_bf16(uint16_t *p, vec_f32 a)
{
    _mm256_storeu_si256((__m256i *)p, narrowed_bf16(a));
}
FSM_INLINE void v_stream_bf16(uint16_t *p, vec_f32 a)
{
    _mm256_stream_si256((__m256i *)p, narrowed_bf16(a));
}
FSM_INLINE vec_f32 v_add_f32(vec_f32 a, vec_f32 b) { return _mm512_add_ps(a, b); }
FSM_INLINE vec_f32 v_sub_f32(vec_f32 a, vec_f32 b) { return _mm512_sub_ps(a, b); }
FSM_INLINE vec_f32 v_mul_f32(vec_f32 a, vec_f32 b) { return _mm512_mul_ps(a, b); }
FSM_INLINE vec_f32 v_fma_f32(vec_f32 a, vec_f32 b, vec_f32 c) { return _mm512_fmadd_ps(a, b, c); }
FSM_INLINE vec_f32 v_max_f32(vec_f32 a, vec_f32 b) { return _mm512_max_ps(a, b); }
FSM_INLINE mask_f32 v_not_lt_f32(vec_f32 a, vec_f32 b)
{
    return _mm512_cmp_ps_mask(a, b, _CMP_NLT_UQ);
}
FSM_INLINE mask_f32 v_ne_f32(vec_f32 a, vec_f32 b) { return _mm512_cmp_ps_mask(a, b, _CMP_NEQ_UQ); }
FSM_INLINE mask_f32 v_lt_f32(vec_f32 a, vec_f32 b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
FSM_INLINE mask_f32 v_unordered_f32(vec_f32 a, vec_f32 b)
{
    return _mm512_cmp_ps_mask(a, b, _CMP_UNORD_Q);
}
FSM_INLINE uint32_t v_bits_f32(mask_f32 m) { return m; }
FSM_INLINE int v_count_f32(mask_f32 m) { return (int)_mm_popcnt_u32(m); }
FSM_INLINE vec_f32 v_keep_f32(mask_f32 m, vec_f32 a) { return _mm512_maskz_mov_ps(m, a); }
FSM_INLINE vec_f32 v_select_f32(mask_f32 m, vec_f32 a, vec_f32 b)
{
    return _mm512_mask_blend_ps(m, b, a);
}
FSM_INLINE vec_f32 v_power_f32(vec_f32 n)
{
    const __m512i u = _mm512_castps_si512(n);
    const __m512i part = _mm512_permutexvar_epi32(u, _mm512_loadu_si512(fsm_eighths_f32));
    return _mm512_castsi512_ps(_mm512_add_epi32(part, _mm512_slli_epi32(u, 20)));
}
FSM_INLINE float v_hmax_f32(vec_f32 a) { return _mm512_reduce_max_ps(a); }

FSM_INLINE vec_f64 v_set1_f64(double a) { return _mm512_set1_pd(a); }
FSM_INLINE vec_f64 v_load_f64(const double *p) { return _mm512_loadu_pd(p); }
FSM_INLINE void v_store_f64(double *p, vec_f64 a) { _mm512_storeu_pd(p, a); }
FSM_INLINE vec_f64 v_load_tail_f64(const double *p, int n, double fill)
{
    return _mm512_mask_loadu_pd(_mm512_set1_pd(fill), (mask_f64)((1u << n) - 1), p);
}
FSM_INLINE void v_store_tail_f64(double *p, vec_f64 a, int n)
{
    _mm512_mask_storeu_pd(p, (mask_f64)((1u << n) - 1), a);
}
FSM_INLINE void v_stream_f64(double *p, vec_f64 a) { _mm512_stream_pd(p, a); }
FSM_INLINE mask_f64 v_first_f64(int n) { return (mask_f64)((1u << n) - 1); }
FSM_INLINE vec_f64 v_add_f64(vec_f64 a, vec_f64 b) { return _mm512_add_pd(a, b); }
FSM_INLINE void v_accumulate_f32(vec_f64 *sum, vec_f32 a)
{
    sum[0] = v_add_f64(sum[0], _mm512_cvtps_pd(_mm512_castps512_ps256(a)));
    sum[1] = v_add_f64(sum[1], _mm512_cvtps_pd(_mm512_extractf32x8_ps(a, 1)));
}
FSM_INLINE vec_f64 v_sub_f64(vec_f64 a, vec_f64 b) { return _mm512_sub_pd(a, b); }
FSM_INLINE vec_f64 v_mul_f64(vec_f64 a, vec_f64 b) { return _mm512_mul_pd(a, b); }
FSM_INLINE vec_f64 v_fma_f64(vec_f64 a, vec_f64 b, vec_f64 c) { return _mm512_fmadd_pd(a, b, c); }
FSM_INLINE vec_f64 v_max_f64(vec_f64 a, vec_f64 b) { return _mm512_max_pd(a, b); }
FSM_INLINE mask_f64 v_not_lt_f64(vec_f64 a, vec_f64 b)
{
    return _mm512_cmp_pd_mask(a, b, _CMP_NLT_UQ);
}
FSM_INLINE mask_f64 v_ne_f64(vec_f64 a, vec_f64 b) { return _mm512_cmp_pd_mask(a, b, _CMP_NEQ_UQ); }
FSM_INLINE mask_f64 v_lt_f64(vec_f64 a, vec_f64 b) { return _mm512_cmp_pd_mask(a, b, _CMP_LT_OQ); }
FSM_INLINE mask_f64 v_unordered_f64(vec_f64 a, vec_f64 b)
{
    return _mm512_cmp_pd_mask(a, b, _CMP_UNORD_Q);
}
FSM_INLINE uint32_t v_bits_f64(mask_f64 m) { return m; }
FSM_INLINE int v_count_f64(mask_f64 m) { return (int)_mm_popcnt_u32(m); }
FSM_INLINE vec_f64 v_keep_f64(mask_f64 m, vec_f64 a) { return _mm512_maskz_mov_pd(m, a); }
FSM_INLINE vec_f64 v_select_f64(mask_f64 m, vec_f64 a, vec_f64 b)
{
    return _mm512_mask_blend_pd(m, b, a);
}
FSM_INLINE vec_f64 v_power_f64(vec_f64 n)
{
    static const uint64_t eighths[8] = {FSM_EIGHTHS_F64(FSM_WHOLE)};
    const __m512i u = _mm512_castpd_si512(n);
    const __m512i part = _mm512_permutexvar_epi64(u, _mm512_loadu_si512(eighths));
    return _mm512_castsi512_pd(_mm512_add_epi64(part, _mm512_slli_epi64(u, 49)));
}
FSM_INLINE vec_f64 v_exponent_f64(vec_f64 a) { return _mm512_getexp_pd(a); }
FSM_INLINE vec_f64 v_significand_f64(vec_f64 a)
{
    return _mm512_getmant_pd(a, _MM_MANT_NORM_1_2, _MM_MANT_SIGN_zero);
}
FSM_INLINE double v_hmax_f64(vec_f64 a) { return _mm512_reduce_max_pd(a); }
FSM_INLINE double v_hsum_f64(vec_f64 a)
{
    const __m256d b = _mm256_add_pd(_mm512_castpd512_pd256(a), _mm512_extractf64x4_pd(a, 1));
    const __m128d c = _mm_add_pd(_mm256_castpd256_pd128(b), _mm256_extractf128_pd(b, 1));
    return _mm_cvtsd_f64(_mm_add_sd(c, _mm_unpackhi_pd(c, c)));
}
FSM_INLINE vec_f64 v_div_f64(vec_f64 a, vec_f64 b) { return _mm512_div_pd(a, b); }
FSM_INLINE void v_accumulate_f64(vec_f64 *sum, vec_f64 a) { sum[0] = v_add_f64(sum[0], a); }
FSM_INLINE vec_f64 v_join_f64(const vec_f64 *a) { return a[0]; }
FSM_INLINE vec_f32 v_join_f32(const vec_f64 *a)
{
    return _mm512_insertf32x8(_mm512_castps256_ps512(_mm512_cvtpd_ps(a[0])), _mm512_cvtpd_ps(a[1]),
                              1);
}
/* In every 128 bits, four columns of four rows, or back. */
FSM_INLINE void fsm_transpose_fours(vec_f32 *v)
{
    const vec_f32 a0 = _mm512_unpacklo_ps(v[0], v[1]), a1 = _mm512_unpackhi_ps(v[0], v[1]);
    const vec_f32 a2 = _mm512_unpacklo_ps(v[2], v[3]), a3 = _mm512_unpackhi_ps(v[2], v[3]);
    v[0] = _mm512_shuffle_ps(a0, a2, 0x44);
    v[1] = _mm512_shuffle_ps(a0, a2, 0xee);
    v[2] = _mm512_shuffle_ps(a1, a3, 0x44);
    v[3] = _mm512_shuffle_ps(a1, a3, 0xee);
}
FSM_INLINE void v_transpose_f32(vec_f32 *v)
{
    vec_f32 a[16];
    UNROLL
    for (int i = 0; i < 16; i += 4)
        fsm_transpose_fours(v + i);
    UNROLL
    for (int i = 0; i < 4; ++i) {
        a[i] = _mm512_shuffle_f32x4(v[i], v[i + 4], 0x88);
        a[i + 4] = _mm512_shuffle_f32x4(v[i], v[i + 4], 0xdd);
        a[i + 8] = _mm512_shuffle_f32x4(v[i + 8], v[i + 12], 0x88);
        a[i + 12] = _mm512_shuffle_f32x4(v[i + 8], v[i + 12], 0xdd);
    }
    UNROLL
    for (int i = 0; i < 4; ++i) {
        v[i] = _mm512_shuffle_f32x4(a[i], a[i + 8], 0x88);
        v[i + 8] = _mm512_shuffle_f32x4(a[i], a[i + 8], 0xdd);
        v[i + 4] = _mm512_shuffle_f32x4(a[i + 4], a[i + 12], 0x88);
        v[i + 12] = _mm512_shuffle_f32x4(a[i + 4], a[i + 12], 0xdd);
    }
}
#define FOURS_f32 1
FSM_INLINE void v_load_fours_f32(const float *p, int64_t stride, vec_f32 *v)
{
    UNROLL
    for (int k = 0; k < 4; ++k) {
        v[k] = _mm512_castps128_ps512(_mm_loadu_ps(p + k * stride));
        v[k] = _mm512_insertf32x4(v[k], _mm_loadu_ps(p + (k + 4) * stride), 1);
        v[k] = _mm512_insertf32x4(v[k], _mm_loadu_ps(p + (k + 8) * stride), 2);
        v[k] = _mm512_insertf32x4(v[k], _mm_loadu_ps(p + (k + 12) * stride), 3);
    }
    fsm_transpose_fours(v);
}
FSM_INLINE void v_store_fours_f32(float *p, int64_t stride, vec_f32 *v)
{
    fsm_transpose_fours(v);
    UNROLL
    for (int k = 0; k < 4; ++k)
        _mm_storeu_ps(p + k * stride, _mm512_castps512_ps128(v[k]));
    UNROLL
    for (int k = 0; k < 4; ++k)
        _mm_storeu_ps(p + (k + 4) * stride, _mm512_extractf32x4_ps(v[k], 1));
    UNROLL
    for (int k = 0; k < 4; ++k)
        _mm_storeu_ps(p + (k + 8) * stride, _mm512_extractf32x4_ps(v[k], 2));
    UNROLL
    for (int k = 0; k < 4; ++k)
        _mm_storeu_ps(p + (k + 12) * stride, _mm512_extractf32x4_ps(v[k], 3));
}
#define FITTED_f32 (1 << 2 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 8)
/* entry(0) to entry(15) as integers */
#define FSM_SIXTEEN(entry)                                                                        \
    _mm512_setr_epi32(entry(0), entry(1), entry(2), entry(3), entry(4), entry(5), entry(6),       \
                      entry(7), entry(8), entry(9), entry(10), entry(11), entry(12), entry(13),   \
                      entry(14), entry(15))
/* Of sixteen rows of n entries, columns and back: register k has the places from 16k on. */
FSM_INLINE void fsm_gather_columns(vec_f32 *v, int n)
{
    vec_f32 a[8];
    UNROLL
    for (int c = 0; c < n; ++c) {
#define PLACE(row) (((row) * n + c) % 16)
        const __m512i place = FSM_SIXTEEN(PLACE);
#undef PLACE
        a[c] = _mm512_permutexvar_ps(place, v[0]);
        UNROLL
        for (int k = 1; k < n; ++k) {
            const int first = (16 * k - c + n - 1) / n; /* of the rows that are here or behind */
            const mask_f32 rows = (mask_f32)(0xffffu << first);
            a[c] = _mm512_mask_permutexvar_ps(a[c], rows, place, v[k]);
        }
    }
    UNROLL
    for (int c = 0; c < n; ++c)
        v[c] = a[c];
}
FSM_INLINE void fsm_scatter_columns(vec_f32 *v, int n)
{
    /* Every nth lane. */
    const uint32_t every = n == 3 ? 0x9249 : n == 5 ? 0x8421 : n == 6 ? 0x1041 : 0x4081;
    vec_f32 a[8];
    UNROLL
    for (int k = 0; k < n; ++k) {
#define ROW(lane) ((16 * k + (lane)) / n)
        const __m512i row = FSM_SIXTEEN(ROW);
#undef ROW
        a[k] = _mm512_permutexvar_ps(row, v[0]);
        UNROLL
        for (int c = 1; c < n; ++c) {
            const mask_f32 its = (mask_f32)(every << (c + 16 * (n - k)) % n);
            a[k] = _mm512_mask_permutexvar_ps(a[k], its, row, v[c]);
        }
    }
    UNROLL
    for (int k = 0; k < n; ++k)
        v[k] = a[k];
}
FSM_INLINE void v_columns_f32(vec_f32 *v, int n)
{
    if (n == 2) {
        const vec_f32 a = v[0];
        v[0] = _mm512_shuffle_ps(a, v[1], 0x88);
        v[1] = _mm512_shuffle_ps(a, v[1], 0xdd);
    } else if (n == 4) {
        fsm_transpose_fours(v);
    } else if (n < 8) {
        fsm_gather_columns(v, n);
    } else {
        UNROLL
        for (int k = 0; k < 4; ++k) {
            const vec_f32 a = v[k];
            v[k] = _mm512_shuffle_f32x4(a, v[k + 4], 0x88);
            v[k + 4] = _mm512_shuffle_f32x4(a, v[k + 4], 0xdd);
        }
        fsm_transpose_fours(v);
        fsm_transpose_fours(v + 4);
    }
}
FSM_INLINE void v_rows_f32(vec_f32 *v, int n)
{
    if (n == 2) {
        const vec_f32 a = v[0];
        v[0] = _mm512_unpacklo_ps(a, v[1]);
        v[1] = _mm512_unpackhi_ps(a, v[1]);
    } else if (n == 4) {
        fsm_transpose_fours(v);
    } else if (n < 8) {
        fsm_scatter_columns(v, n);
    } else {
        const __m512i low = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11);
        const __m512i high = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
        fsm_transpose_fours(v);
        fsm_transpose_fours(v + 4);
        UNROLL
        for (int k = 0; k < 4; ++k) {
            const __m512d a = _mm512_castps_pd(v[k]), b = _mm512_castps_pd(v[k + 4]);
            v[k] = _mm512_castpd_ps(_mm512_permutex2var_pd(a, low, b));
            v[k + 4] = _mm512_castpd_ps(_mm512_permutex2var_pd(a, high, b));
        }
    }
}
FSM_INLINE void v_transpose_f64(vec_f64 *v)
{
    vec_f64 a[8], b[8];
    UNROLL
    for (int i = 0; i < 8; i += 2) {
        a[i] = _mm512_unpacklo_pd(v[i], v[i + 1]);
        a[i + 1] = _mm512_unpackhi_pd(v[i], v[i + 1]);
    }
    UNROLL
    for (int i = 0; i < 2; ++i) {
        b[i] = _mm512_shuffle_f64x2(a[i], a[i + 2], 0x88);
        b[i + 2] = _mm512_shuffle_f64x2(a[i], a[i + 2], 0xdd);
        b[i + 4] = _mm512_shuffle_f64x2(a[i + 4], a[i + 6], 0x88);
        b[i + 6] = _mm512_shuffle_f64x2(a[i + 4], a[i + 6], 0xdd);
    }
    UNROLL
    for (int i = 0; i < 2; ++i) {
        v[i] = _mm512_shuffle_f64x2(b[i], b[i + 4], 0x88);
        v[i + 4] = _mm512_shuffle_f64x2(b[i], b[i + 4], 0xdd);
        v[i + 2] = _mm512_shuffle_f64x2(b[i + 2], b[i + 6], 0x88);
        v[i + 6] = _mm512_shuffle_f64x2(b[i + 2], b[i + 6], 0xdd);
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
FSM_INLINE int v_places_f32(uint32_t *id, uint32_t first, uint32_t bits)
{
    const __m512i lane =
        _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i ids = _mm512_add_epi32(lane, _mm512_set1_epi32((int)first));
    /* Compressed in a register: to memory it is slow on some CPUs. */
    _mm512_storeu_si512(id, _mm512_maskz_compress_epi32((mask_f32)bits, ids));
    return (int)_mm_popcnt_u32(bits);
}
FSM_INLINE int v_places_f64(uint32_t *id, uint32_t first, uint32_t bits)
{
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256i ids = _mm256_add_epi32(lane, _mm256_set1_epi32((int)first));
    _mm256_storeu_si256((__m256i *)id, _mm256_maskz_compress_epi32((mask_f64)bits, ids));
    return (int)_mm_popcnt_u32(bits);
}
FSM_INLINE int v_squeeze_f64(double *value, uint32_t *id, double *weight, int64_t from, int64_t to,
                             uint32_t bits)
{
    const mask_f64 m = (mask_f64)bits;
    const __m512d v = _mm512_maskz_compress_pd(m, _mm512_loadu_pd(value + from));
    const __m512d w = _mm512_maskz_compress_pd(m, _mm512_loadu_pd(weight + from));
    const __m256i i =
        _mm256_maskz_compress_epi32(m, _mm256_loadu_si256((const __m256i *)(id + from)));
    _mm512_storeu_pd(value + to, v);
    _mm512_storeu_pd(weight + to, w);
    _mm256_storeu_si256((__m256i *)(id + to), i);
    return (int)_mm_popcnt_u32(bits);
}
FSM_INLINE int v_squeeze_f32(float *value, uint32_t *id, double *weight, int64_t from, int64_t to,
                             uint32_t bits)
{
    const mask_f32 m = (mask_f32)bits;
    const __m512 v = _mm512_maskz_compress_ps(m, _mm512_loadu_ps(value + from));
    const __m512i i = _mm512_maskz_compress_epi32(m, _mm512_loadu_si512(id + from));
    const __m512d low = _mm512_loadu_pd(weight + from), high = _mm512_loadu_pd(weight + from + 8);
    _mm512_storeu_ps(value + to, v);
    _mm512_storeu_si512(id + to, i);
    _mm512_storeu_pd(weight + to, _mm512_maskz_compress_pd((mask_f64)(bits & 255), low));
    _mm512_storeu_pd(weight + to + _mm_popcnt_u32(bits & 255),
                     _mm512_maskz_compress_pd((mask_f64)(bits >> 8), high));
    return (int)_mm_popcnt_u32(bits);
}
