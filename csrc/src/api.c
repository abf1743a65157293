/* The public functions: check, then call the kernels of the batch's instruction set and type. */
#include "internal.h"

#define FSM_STR_(x) #x
#define FSM_STR(x) FSM_STR_(x)

static const fsm_kernel_table *find_table(fastsoftmax_isa isa)
{
    switch (isa) {
    case FASTSOFTMAX_ISA_SCALAR:
        return &fsm_table_scalar;
#if defined(FSM_X86)
    case FASTSOFTMAX_ISA_AVX2:
        return &fsm_table_avx2;
    case FASTSOFTMAX_ISA_AVX512:
        return &fsm_table_avx512;
#elif defined(FSM_ARM64)
    case FASTSOFTMAX_ISA_NEON:
        return &fsm_table_neon;
#endif
    default:
        return NULL;
    }
}

static int known(fastsoftmax_dtype dtype)
{
    return dtype == FASTSOFTMAX_F32 || dtype == FASTSOFTMAX_F64 || dtype == FASTSOFTMAX_F16 ||
           dtype == FASTSOFTMAX_BF16;
}

/* The most rows, or entries of a row: sizes of scratch memory do not overflow. */
#define MOST (INT64_C(1) << 56)

/* Whether a * b, neither below 0, is at most MOST; a division for large ones alone. */
static int few(int64_t a, int64_t b)
{
    return (a | b) < (INT64_C(1) << 28) || b == 0 || a <= MOST / b;
}

/* Whether the lengths of some axes are right and multiply to no more than MOST. */
static int countable(const fastsoftmax_axis *axes, int32_t count)
{
    int64_t n = 1;
    for (int32_t i = 0; i < count; ++i) {
        if (axes[i].size < 0 || !few(n, axes[i].size))
            return 0;
        n *= axes[i].size;
    }
    return 1;
}

static fastsoftmax_status check(const fastsoftmax_batch *batch, const fsm_kernels **kernels)
{
    const fsm_kernel_table *table = find_table(batch->isa);
    if (!table)
        return FASTSOFTMAX_BAD_ISA;
    if (!known(batch->x_dtype) || !known(batch->out_dtype))
        return FASTSOFTMAX_BAD_DTYPE;
    if (batch->row_axes < 0 || batch->col_axes < 0 ||
        !countable(batch->axes, batch->row_axes) ||
        !countable(batch->axes + batch->row_axes, batch->col_axes))
        return FASTSOFTMAX_BAD_SHAPE;
    *kernels = &table->type[batch->x_dtype == FASTSOFTMAX_F64 || batch->out_dtype == FASTSOFTMAX_F64];
    return FASTSOFTMAX_OK;
}

static fastsoftmax_status check_rows(const fastsoftmax_batch *batch, fastsoftmax_op op,
                                     int64_t begin, int64_t end)
{
    if (begin < 0 || end < begin || end > fsm_rows(batch))
        return FASTSOFTMAX_BAD_SHAPE;
    if (begin == end)
        return FASTSOFTMAX_OK;
    if (!batch->temperature || !batch->out || (!batch->x && fsm_cols(batch)))
        return FASTSOFTMAX_BAD_POINTER;
    int one = 1; /* temperature for all rows */
    for (int32_t i = 0; i < batch->row_axes; ++i)
        one &= batch->axes[i].temperature == 0 || batch->axes[i].size == 1;
    for (int64_t r = begin; r < (one ? begin + 1 : end); ++r) {
        const double t =
            batch->temperature[fsm_locate(batch->axes, batch->row_axes, r).temperature];
        if (!(t > 0.0 || (t == 0.0 && op != FASTSOFTMAX_OP_LOGSUMEXP)))
            return FASTSOFTMAX_BAD_TEMPERATURE;
    }
    return FASTSOFTMAX_OK;
}

static fastsoftmax_status run(const fastsoftmax_batch *batch, fastsoftmax_op op, int64_t begin,
                              int64_t end, void *scratch)
{
    const fsm_kernels *kernels;
    fastsoftmax_status status = check(batch, &kernels);
    if (status == FASTSOFTMAX_OK)
        status = check_rows(batch, op, begin, end);
    if (status == FASTSOFTMAX_OK && begin < end)
        kernels->rows(batch, op, begin, end, scratch);
    return status;
}

fastsoftmax_status fastsoftmax_softmax(const fastsoftmax_batch *batch, int64_t row_begin,
                                       int64_t row_end, void *scratch)
{
    return run(batch, FASTSOFTMAX_OP_SOFTMAX, row_begin, row_end, scratch);
}

fastsoftmax_status fastsoftmax_log_softmax(const fastsoftmax_batch *batch, int64_t row_begin,
                                           int64_t row_end, void *scratch)
{
    return run(batch, FASTSOFTMAX_OP_LOG_SOFTMAX, row_begin, row_end, scratch);
}

fastsoftmax_status fastsoftmax_logsumexp(const fastsoftmax_batch *batch, int64_t row_begin,
                                         int64_t row_end, void *scratch)
{
    return run(batch, FASTSOFTMAX_OP_LOGSUMEXP, row_begin, row_end, scratch);
}

size_t fastsoftmax_scratch_size(const fastsoftmax_batch *batch)
{
    const fsm_kernels *kernels;
    return check(batch, &kernels) == FASTSOFTMAX_OK ? kernels->scratch_size(fsm_cols(batch)) : 0;
}

/* Of a batch that has been checked. */
static int64_t count_blocks(const fastsoftmax_batch *batch)
{
    return (fsm_cols(batch) + BLOCK - 1) / BLOCK;
}

int64_t fastsoftmax_block_count(const fastsoftmax_batch *batch)
{
    const fsm_kernels *kernels;
    return check(batch, &kernels) == FASTSOFTMAX_OK ? count_blocks(batch) : 0;
}

static fastsoftmax_status check_blocks(const fastsoftmax_batch *batch, fastsoftmax_op op,
                                       int64_t row, int64_t begin, int64_t end,
                                       const fsm_kernels **kernels)
{
    const fastsoftmax_status status = check(batch, kernels);
    if (status != FASTSOFTMAX_OK)
        return status;
    if (begin < 0 || end < begin || end > count_blocks(batch) || row < 0 ||
        row >= fsm_rows(batch))
        return FASTSOFTMAX_BAD_SHAPE;
    return check_rows(batch, op, row, row + 1);
}

fastsoftmax_status fastsoftmax_reduce_blocks(const fastsoftmax_batch *batch, fastsoftmax_op op,
                                             int64_t row, int64_t block_begin, int64_t block_end,
                                             void *shared, void *scratch)
{
    const fsm_kernels *kernels;
    const fastsoftmax_status status =
        check_blocks(batch, op, row, block_begin, block_end, &kernels);
    if (status == FASTSOFTMAX_OK)
        kernels->reduce_blocks(batch, op, row, block_begin, block_end, shared, scratch);
    return status;
}

fastsoftmax_status fastsoftmax_merge_blocks(const fastsoftmax_batch *batch, fastsoftmax_op op,
                                            int64_t row, void *shared, void *scratch)
{
    const fsm_kernels *kernels;
    const fastsoftmax_status status = check_blocks(batch, op, row, 0, 0, &kernels);
    if (status == FASTSOFTMAX_OK)
        kernels->merge_blocks(batch, op, row, shared, scratch);
    return status;
}

fastsoftmax_status fastsoftmax_write_blocks(const fastsoftmax_batch *batch, fastsoftmax_op op,
                                            int64_t row, int64_t block_begin, int64_t block_end,
                                            void *shared, void *scratch)
{
    const fsm_kernels *kernels;
    const fastsoftmax_status status =
        check_blocks(batch, op, row, block_begin, block_end, &kernels);
    /* What is written once, with the first block, is not for a thread that has no block. */
    if (status == FASTSOFTMAX_OK &&
        (block_begin < block_end || count_blocks(batch) == 0))
        kernels->write_blocks(batch, op, row, block_begin, block_end, shared, scratch);
    return status;
}

fastsoftmax_status fastsoftmax_contiguous(fastsoftmax_op op, fastsoftmax_isa isa,
                                          fastsoftmax_dtype dtype, int64_t rows, int64_t cols,
                                          const void *x, double temperature, void *out,
                                          void *scratch)
{
    const int writes_rows = op != FASTSOFTMAX_OP_LOGSUMEXP;
    const fastsoftmax_axis axes[2] = {{rows, cols, writes_rows ? cols : 1, 0, 0},
                                      {cols, 1, 1, 0, 0}};
    const fastsoftmax_batch batch = {isa, dtype, dtype, 1, 1, axes, x, NULL, &temperature, out, NULL, 0, NULL};
    const fsm_kernels *kernels;
    const fastsoftmax_status status = check(&batch, &kernels);
    if (status != FASTSOFTMAX_OK)
        return status;
    if (!few(rows, cols))
        return FASTSOFTMAX_BAD_SHAPE;
    const uintptr_t a = (uintptr_t)x, b = (uintptr_t)out, size = fsm_size_of(dtype);
    const uintptr_t x_bytes = (uintptr_t)(rows * cols) * size;
    const uintptr_t out_bytes = writes_rows ? x_bytes : (uintptr_t)rows * size;
    if (a % size || b % size || (!(a == b && writes_rows) && a < b + out_bytes && b < a + x_bytes))
        return FASTSOFTMAX_BAD_POINTER;
    return run(&batch, op, 0, rows, scratch);
}

/* Scoring and sampling: rows are checked, and that nothing that is needed is NULL. */
static fastsoftmax_status check_score(const fastsoftmax_batch *batch, int64_t begin, int64_t end,
                                      int pointers, const fsm_kernels **kernels)
{
    fastsoftmax_batch reads = *batch;
    if (!reads.out)
        reads.out = (void *)&reads; /* is not written */
    fastsoftmax_status status = check(batch, kernels);
    if (status == FASTSOFTMAX_OK)
        status = check_rows(&reads, FASTSOFTMAX_OP_SOFTMAX, begin, end);
    if (status == FASTSOFTMAX_OK && begin < end && !pointers)
        status = FASTSOFTMAX_BAD_POINTER;
    return status;
}

fastsoftmax_status fastsoftmax_token_logprobs(const fastsoftmax_batch *batch, const int64_t *ids,
                                              int64_t m, double *logprobs, int64_t *ranks,
                                              double *mean, int64_t row_begin, int64_t row_end,
                                              void *scratch)
{
    const fsm_kernels *kernels;
    const fastsoftmax_status status =
        check_score(batch, row_begin, row_end, m == 0 || (ids && logprobs), &kernels);
    if (status == FASTSOFTMAX_OK && m < 0)
        return FASTSOFTMAX_BAD_SHAPE;
    if (status == FASTSOFTMAX_OK)
        kernels->token_logprobs(batch, ids, m, logprobs, ranks, mean, row_begin, row_end, scratch);
    return status;
}

fastsoftmax_status fastsoftmax_topk(const fastsoftmax_batch *batch, int64_t k, int64_t *ids,
                                    double *logprobs, int64_t row_begin, int64_t row_end,
                                    void *scratch)
{
    const fsm_kernels *kernels;
    const fastsoftmax_status status =
        check_score(batch, row_begin, row_end, ids && logprobs, &kernels);
    if (status == FASTSOFTMAX_OK && (k < 1 || k > fsm_cols(batch)))
        return FASTSOFTMAX_BAD_SHAPE;
    if (status == FASTSOFTMAX_OK)
        kernels->topk(batch, k, ids, logprobs, row_begin, row_end, scratch);
    return status;
}

fastsoftmax_status fastsoftmax_moments(const fastsoftmax_batch *batch, double *out,
                                       int64_t row_begin, int64_t row_end, void *scratch)
{
    const fsm_kernels *kernels;
    const fastsoftmax_status status =
        check_score(batch, row_begin, row_end, out != NULL, &kernels);
    if (status == FASTSOFTMAX_OK)
        kernels->moments(batch, out + 4 * row_begin, row_begin, row_end, scratch);
    return status;
}

fastsoftmax_status fastsoftmax_kl_divergence(const fastsoftmax_batch *p, const fastsoftmax_batch *q,
                                             double *out, int64_t row_begin, int64_t row_end,
                                             void *scratch)
{
    const fsm_kernels *kernels;
    fastsoftmax_status status = check_score(p, row_begin, row_end, out != NULL, &kernels);
    if (status == FASTSOFTMAX_OK)
        status = check_score(q, row_begin, row_end, 1, &kernels);
    if (status == FASTSOFTMAX_OK && (fsm_cols(p) != fsm_cols(q) || p->isa != q->isa))
        return FASTSOFTMAX_BAD_SHAPE;
    if (status == FASTSOFTMAX_OK)
        find_table(p->isa)->kl_divergence(p, q, out, row_begin, row_end, scratch);
    return status;
}

size_t fastsoftmax_scoring_scratch_size(const fastsoftmax_batch *batch, int64_t k)
{
    const fsm_kernels *kernels;
    if (check(batch, &kernels) != FASTSOFTMAX_OK || k < 0)
        return 0;
    const int64_t cols = fsm_cols(batch);
    /* kl_divergence works in double, and on three blocks beside. */
    const size_t wide = find_table(batch->isa)->type[FASTSOFTMAX_F64].scoring_size(cols) +
                        3 * BLOCK * sizeof(double);
    const size_t best = kernels->scoring_size(cols) + kernels->best_size(k);
    return wide > best ? wide : best;
}

fastsoftmax_status fastsoftmax_reduce(const fastsoftmax_batch *batch, double *maximum, double *rest,
                                      int64_t row_begin, int64_t row_end, void *scratch)
{
    const fsm_kernels *kernels;
    const fastsoftmax_status status =
        check_score(batch, row_begin, row_end, maximum && rest, &kernels);
    if (status == FASTSOFTMAX_OK)
        kernels->reduce(batch, maximum, rest, row_begin, row_end, scratch);
    return status;
}

fastsoftmax_status fastsoftmax_normalize(const fastsoftmax_batch *batch, const double *maximum,
                                         const double *rest, int logarithm, int64_t row_begin,
                                         int64_t row_end, void *scratch)
{
    const fsm_kernels *kernels;
    const fastsoftmax_status status =
        check_score(batch, row_begin, row_end, maximum && rest && batch->out, &kernels);
    if (status == FASTSOFTMAX_OK)
        kernels->normalize(batch, maximum, rest, logarithm, row_begin, row_end, scratch);
    return status;
}

/* Kernels number candidates with 32 bits. */
static fastsoftmax_status check_draw(const fastsoftmax_batch *batch,
                                     const fastsoftmax_filters *filters, int64_t row_begin,
                                     int64_t row_end, int pointers, const fsm_kernels **kernels)
{
    const int there = filters && filters->top_k && filters->top_p && filters->min_p && pointers;
    const fastsoftmax_status status = check_score(batch, row_begin, row_end, there, kernels);
    return status == FASTSOFTMAX_OK && fsm_cols(batch) > INT32_MAX ? FASTSOFTMAX_BAD_SHAPE : status;
}

fastsoftmax_status fastsoftmax_sample(const fastsoftmax_batch *batch,
                                      const fastsoftmax_filters *filters, const double *uniforms,
                                      int64_t draws, int replace, int64_t *ids, double *logprobs,
                                      int64_t row_begin, int64_t row_end, void *scratch)
{
    const fsm_kernels *kernels;
    const fastsoftmax_status status = check_draw(
        batch, filters, row_begin, row_end, uniforms && ids && logprobs, &kernels);
    if (status == FASTSOFTMAX_OK && draws < 0)
        return FASTSOFTMAX_BAD_SHAPE;
    if (status == FASTSOFTMAX_OK)
        kernels->sample(batch, filters, uniforms, draws, replace, ids, logprobs, row_begin, row_end,
                        scratch);
    return status;
}

fastsoftmax_status fastsoftmax_count_survivors(const fastsoftmax_batch *batch,
                                               const fastsoftmax_filters *filters, int64_t *counts,
                                               int64_t row_begin, int64_t row_end, void *scratch)
{
    const fsm_kernels *kernels;
    const fastsoftmax_status status =
        check_draw(batch, filters, row_begin, row_end, counts != NULL, &kernels);
    if (status == FASTSOFTMAX_OK)
        kernels->count_survivors(batch, filters, counts, row_begin, row_end, scratch);
    return status;
}

fastsoftmax_status fastsoftmax_survivors(const fastsoftmax_batch *batch,
                                         const fastsoftmax_filters *filters, const int64_t *offsets,
                                         int64_t *ids, double *logprobs, int64_t row_begin,
                                         int64_t row_end, void *scratch)
{
    const fsm_kernels *kernels;
    const fastsoftmax_status status = check_draw(
        batch, filters, row_begin, row_end, offsets && ids && logprobs, &kernels);
    if (status == FASTSOFTMAX_OK)
        kernels->survivors(batch, filters, offsets, ids, logprobs, row_begin, row_end, scratch);
    return status;
}

size_t fastsoftmax_sample_scratch_size(const fastsoftmax_batch *batch,
                                       const fastsoftmax_filters *filters)
{
    const fsm_kernels *kernels;
    if (check(batch, &kernels) != FASTSOFTMAX_OK)
        return 0;
    const int64_t rows = fsm_rows(batch), cols = fsm_cols(batch);
    int64_t top_k = 1;
    for (int64_t r = 0; r < rows; ++r)
        if (filters->top_k[r] < cols && filters->top_k[r] > top_k)
            top_k = filters->top_k[r];
    return kernels->scoring_size(cols) + kernels->draw_size(cols, top_k);
}

/* Number `index` of the SplitMix64 generator that starts with `state`. */
static uint64_t splitmix64(uint64_t state, uint64_t index)
{
    uint64_t z = state + (index + 1) * UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

double fastsoftmax_uniform(uint64_t seed, uint64_t row, uint64_t step, uint64_t draw)
{
    const uint64_t bits = splitmix64(splitmix64(splitmix64(splitmix64(seed, 0), row), step), draw);
    return (double)(bits >> 11) * 0x1p-53;
}

const char *fastsoftmax_version(void)
{
    return FSM_STR(FASTSOFTMAX_VERSION_MAJOR) "." FSM_STR(FASTSOFTMAX_VERSION_MINOR) "." FSM_STR(
        FASTSOFTMAX_VERSION_PATCH);
}
