/* Every operation of the library behind one function, for the tests that run all of them: each takes
 * what it needs of one set of arguments and writes to one set of results. */
#ifndef FSM_TEST_OPERATIONS_H
#define FSM_TEST_OPERATIONS_H

#include "fastsoftmax.h"

enum { ISAS = 4, DTYPES = 4 };
static const char *const isa_names[ISAS] = {"scalar", "neon", "avx2", "avx512"};
static const char *const dtype_names[DTYPES] = {"float", "double", "half", "bfloat"};

/* The first nine are three ways to do the operations of fastsoftmax_op. */
typedef enum operation {
    WHOLE_ROWS = 0,
    BY_BLOCKS = 3,
    CONTIGUOUS = 6,
    TOKEN_LOGPROBS = 9,
    TOPK,
    MOMENTS,
    KL_DIVERGENCE,
    REDUCE,
    NORMALIZE,
    NORMALIZE_LOG,
    SAMPLE,
    SAMPLE_WITHOUT_REPLACEMENT,
    COUNT_SURVIVORS,
    SURVIVORS,
    OPERATIONS
} operation;
static const char *const operation_names[OPERATIONS] = {
    "softmax",        "log_softmax",
    "logsumexp",      "softmax by blocks",
    "log_softmax by blocks", "logsumexp by blocks",
    "contiguous softmax",    "contiguous log_softmax",
    "contiguous logsumexp",  "token_logprobs",
    "topk",           "moments",
    "kl_divergence",  "reduce",
    "normalize",      "normalize with logarithm",
    "sample",         "sample without replacement",
    "count_survivors", "survivors"};

typedef struct arguments {
    fastsoftmax_batch batch; /* its isa counts for nothing */
    fastsoftmax_batch other; /* of kl_divergence */
    int64_t rows, cols;
    int64_t m;            /* tokens, k or draws a row */
    const int64_t *ids;   /* (rows, m), of token_logprobs */
    fastsoftmax_filters filters;
    const double *uniforms;        /* (rows, m) */
    const int64_t *offsets;        /* (rows + 1), of survivors */
    const double *maximum, *rest;  /* (rows), of normalize */
    int64_t row_cut, block_cut;    /* where the ranges of rows and blocks are cut in two */
    double *real, *more;           /* results beside batch.out */
    int64_t *whole;
} arguments;

/* Whether it writes batch.out, in rows or in numbers. */
static inline int writes_rows(operation op)
{
    return op == NORMALIZE || op == NORMALIZE_LOG || (op < TOKEN_LOGPROBS && op % 3 != 2);
}
static inline int writes_out(operation op) { return writes_rows(op) || op < TOKEN_LOGPROBS; }

/* How many numbers the other results have. */
static inline void count_results(operation op, const arguments *a, size_t *real, size_t *more,
                                 size_t *whole)
{
    const size_t rows = (size_t)a->rows, all = rows * (size_t)a->m;
    *real = *more = *whole = 0;
    switch (op) {
    case TOKEN_LOGPROBS:
        *real = *whole = all;
        *more = rows;
        break;
    case TOPK:
    case SAMPLE:
    case SAMPLE_WITHOUT_REPLACEMENT:
        *real = *whole = all;
        break;
    case MOMENTS:
        *real = 4 * rows;
        break;
    case KL_DIVERGENCE:
        *real = rows;
        break;
    case REDUCE:
        *real = *more = rows;
        break;
    case COUNT_SURVIVORS:
        *whole = rows;
        break;
    case SURVIVORS:
        *real = *whole = (size_t)a->offsets[rows];
        break;
    default:
        break;
    }
}

static inline size_t scratch_bytes(operation op, const arguments *a, fastsoftmax_isa isa)
{
    fastsoftmax_batch batch = a->batch;
    batch.isa = isa;
    if (op < TOKEN_LOGPROBS)
        return fastsoftmax_scratch_size(&batch);
    if (op >= SAMPLE)
        return fastsoftmax_sample_scratch_size(&batch, &a->filters);
    return fastsoftmax_scoring_scratch_size(&batch, op == TOPK ? a->m : 0);
}

static inline fastsoftmax_status run_rows(operation op, const arguments *a,
                                          const fastsoftmax_batch *batch, int64_t begin,
                                          int64_t end, void *scratch)
{
    switch ((int)op) {
    case WHOLE_ROWS + FASTSOFTMAX_OP_SOFTMAX:
        return fastsoftmax_softmax(batch, begin, end, scratch);
    case WHOLE_ROWS + FASTSOFTMAX_OP_LOG_SOFTMAX:
        return fastsoftmax_log_softmax(batch, begin, end, scratch);
    case WHOLE_ROWS + FASTSOFTMAX_OP_LOGSUMEXP:
        return fastsoftmax_logsumexp(batch, begin, end, scratch);
    case TOKEN_LOGPROBS:
        return fastsoftmax_token_logprobs(batch, a->ids, a->m, a->real, a->whole, a->more, begin,
                                          end, scratch);
    case TOPK:
        return fastsoftmax_topk(batch, a->m, a->whole, a->real, begin, end, scratch);
    case MOMENTS:
        return fastsoftmax_moments(batch, a->real, begin, end, scratch);
    case KL_DIVERGENCE: {
        fastsoftmax_batch other = a->other;
        other.isa = batch->isa;
        return fastsoftmax_kl_divergence(batch, &other, a->real, begin, end, scratch);
    }
    case REDUCE:
        return fastsoftmax_reduce(batch, a->real, a->more, begin, end, scratch);
    case NORMALIZE:
    case NORMALIZE_LOG:
        return fastsoftmax_normalize(batch, a->maximum, a->rest, op == NORMALIZE_LOG, begin, end,
                                     scratch);
    case SAMPLE:
    case SAMPLE_WITHOUT_REPLACEMENT:
        return fastsoftmax_sample(batch, &a->filters, a->uniforms, a->m, op == SAMPLE, a->whole,
                                  a->real, begin, end, scratch);
    case COUNT_SURVIVORS:
        return fastsoftmax_count_survivors(batch, &a->filters, a->whole, begin, end, scratch);
    case SURVIVORS:
        return fastsoftmax_survivors(batch, &a->filters, a->offsets, a->whole, a->real, begin, end,
                                     scratch);
    default:
        return FASTSOFTMAX_BAD_SHAPE;
    }
}

/* Runs an operation on all rows, in two ranges of them. `scratch` and `shared` are memory of
 * scratch_bytes(); the latter is for BY_BLOCKS alone. */
static inline fastsoftmax_status run_operation(operation op, const arguments *a,
                                               fastsoftmax_isa isa, void *scratch, void *shared)
{
    fastsoftmax_batch batch = a->batch;
    batch.isa = isa;
    fastsoftmax_status status = FASTSOFTMAX_OK;
    if (op >= CONTIGUOUS && op < TOKEN_LOGPROBS)
        return fastsoftmax_contiguous((fastsoftmax_op)(op - CONTIGUOUS), isa, batch.x_dtype,
                                      a->rows, a->cols, batch.x, a->rows ? batch.temperature[0] : 1.0,
                                      batch.out, scratch);
    if (op >= BY_BLOCKS && op < CONTIGUOUS) {
        const fastsoftmax_op which = (fastsoftmax_op)(op - BY_BLOCKS);
        const int64_t blocks = fastsoftmax_block_count(&batch);
        const int64_t cut = a->block_cut < blocks ? a->block_cut : blocks;
        for (int64_t r = 0; r < a->rows && status == FASTSOFTMAX_OK; ++r) {
            status = fastsoftmax_reduce_blocks(&batch, which, r, cut, blocks, shared, scratch);
            if (status != FASTSOFTMAX_OK)
                break;
            fastsoftmax_reduce_blocks(&batch, which, r, 0, cut, shared, scratch);
            fastsoftmax_merge_blocks(&batch, which, r, shared, scratch);
            fastsoftmax_write_blocks(&batch, which, r, cut, blocks, shared, scratch);
            fastsoftmax_write_blocks(&batch, which, r, 0, cut, shared, scratch);
        }
        return status;
    }
    status = run_rows(op, a, &batch, a->row_cut, a->rows, scratch);
    return status == FASTSOFTMAX_OK ? run_rows(op, a, &batch, 0, a->row_cut, scratch) : status;
}

#endif
