/* Threads that share batches: ranges of rows of every operation, and the blocks of single rows, with
 * scratch memory of each thread's own. What comes of it has the bits of one thread. Meant for
 * -fsanitize=thread, which tells of two threads at one place. For POSIX threads with barriers.
 *
 *     threads [ROUNDS] */
#define _POSIX_C_SOURCE 200112L
#include <math.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "operations.h"

enum { THREADS = 4, ROWS = 39, COLS = 6007, DRAWS = 3 };

static float x[ROWS * COLS], other[ROWS * COLS];
static double temperature[ROWS], uniforms[ROWS * DRAWS], top_p[ROWS], min_p[ROWS];
static int64_t ids[ROWS * DRAWS], top_k[ROWS], offsets[ROWS + 1];
static double maximum[ROWS], rest[ROWS];

/* The results of one thread, and of all. */
typedef struct results {
    float out[ROWS * COLS];
    double real[ROWS * COLS], more[ROWS];
    int64_t whole[ROWS * COLS];
} results;
static results want, got;

static pthread_barrier_t barrier;
static void *shared;
static size_t scratch_size;

typedef struct job {
    operation op;
    const arguments *a;
    fastsoftmax_isa isa;
    int thread;
    int failed;
} job;

static void *aligned(void **memory, size_t bytes)
{
    *memory = malloc(bytes + 64);
    if (!*memory)
        abort();
    return (void *)(((uintptr_t)*memory + 63) & ~(uintptr_t)63);
}

static void *work(void *argument)
{
    job *j = (job *)argument;
    fastsoftmax_batch batch = j->a->batch;
    batch.isa = j->isa;
    void *memory, *scratch = aligned(&memory, scratch_size);
    const int t = j->thread;
    if (j->op >= BY_BLOCKS && j->op < CONTIGUOUS) {
        const fastsoftmax_op which = (fastsoftmax_op)(j->op - BY_BLOCKS);
        const int64_t blocks = fastsoftmax_block_count(&batch);
        const int64_t begin = blocks * t / THREADS, end = blocks * (t + 1) / THREADS;
        for (int64_t r = 0; r < j->a->rows; ++r) {
            j->failed |= fastsoftmax_reduce_blocks(&batch, which, r, begin, end, shared, scratch);
            pthread_barrier_wait(&barrier);
            if (t == r % THREADS)
                j->failed |= fastsoftmax_merge_blocks(&batch, which, r, shared, scratch);
            pthread_barrier_wait(&barrier);
            j->failed |= fastsoftmax_write_blocks(&batch, which, r, begin, end, shared, scratch);
            pthread_barrier_wait(&barrier);
        }
    } else {
        const int64_t rows = j->a->rows;
        j->failed |= run_rows(j->op, j->a, &batch, rows * t / THREADS, rows * (t + 1) / THREADS,
                              scratch);
    }
    free(memory);
    return NULL;
}

static void point_to(arguments *a, results *r)
{
    a->batch.out = r->out;
    a->real = r->real;
    a->more = r->more;
    a->whole = r->whole;
}

static int check(operation op, arguments *a, fastsoftmax_isa isa)
{
    pthread_t threads[THREADS];
    job jobs[THREADS];
    void *first, *second;
    int failed = 0;
    const operation whole = op >= BY_BLOCKS && op < CONTIGUOUS ? (operation)(op % 3) : op;
    scratch_size = scratch_bytes(op, a, isa);
    shared = aligned(&first, scratch_size);
    memset(&want, 0x55, sizeof want);
    memset(&got, 0x55, sizeof got);
    point_to(a, &want);
    a->row_cut = 0;
    failed |= run_operation(whole, a, isa, aligned(&second, scratch_size), NULL);
    point_to(a, &got);
    for (int t = 0; t < THREADS; ++t) {
        const job j = {op, a, isa, t, 0};
        jobs[t] = j;
        if (pthread_create(&threads[t], NULL, work, &jobs[t]) != 0)
            abort();
    }
    for (int t = 0; t < THREADS; ++t) {
        pthread_join(threads[t], NULL);
        failed |= jobs[t].failed;
    }
    free(first);
    free(second);
    if (failed || memcmp(&want, &got, sizeof want) != 0) {
        printf("%s, %s: the threads' results differ\n", operation_names[op], isa_names[isa]);
        return 1;
    }
    return 0;
}

/* The batch in rows or in columns, which take turns in cache lines. */
static int check_all(int in_columns)
{
    static const int64_t edit_offsets[ROWS + 1]; /* none */
    static const fastsoftmax_edits edits = {edit_offsets, NULL, NULL, NULL, NULL};
    int failures = 0;
    for (int isa = 0; isa < ISAS; ++isa) {
        if (!fastsoftmax_has_isa((fastsoftmax_isa)isa))
            continue;
        for (int o = 0; o < OPERATIONS; ++o) {
            const operation op = (operation)o;
            if (op >= CONTIGUOUS && op < TOKEN_LOGPROBS)
                continue; /* one call for all rows */
            arguments a;
            const int64_t row = in_columns ? 1 : COLS, col = in_columns ? ROWS : 1;
            const fastsoftmax_axis axes[2] = {{ROWS, row, writes_rows(op) ? row : 1, 0, 1},
                                              {COLS, col, col, 0, 0}};
            memset(&a, 0, sizeof a);
            a.rows = ROWS;
            a.cols = COLS;
            a.m = DRAWS;
            a.batch.row_axes = a.batch.col_axes = 1;
            a.batch.axes = axes;
            a.batch.x = x;
            a.batch.temperature = temperature;
            a.batch.edits = op >= SAMPLE ? &edits : NULL;
            a.other = a.batch;
            a.other.x = other;
            a.ids = ids;
            a.uniforms = uniforms;
            a.filters.top_k = top_k;
            a.filters.top_p = top_p;
            a.filters.min_p = min_p;
            if (op == NORMALIZE || op == NORMALIZE_LOG) {
                failures += check(REDUCE, &a, (fastsoftmax_isa)isa);
                memcpy(maximum, got.real, sizeof maximum);
                memcpy(rest, got.more, sizeof rest);
                a.maximum = maximum;
                a.rest = rest;
            } else if (op == SURVIVORS) {
                failures += check(COUNT_SURVIVORS, &a, (fastsoftmax_isa)isa);
                for (int r = 0; r < ROWS; ++r)
                    offsets[r + 1] = offsets[r] + got.whole[r];
                a.offsets = offsets;
            }
            failures += check(op, &a, (fastsoftmax_isa)isa);
        }
    }
    return failures;
}

int main(int argc, char **argv)
{
    const int rounds = argc > 1 ? atoi(argv[1]) : 1;
    uint32_t state = 12345;
    for (int i = 0; i < ROWS * COLS; ++i) {
        state = state * 1664525u + 1013904223u;
        x[i] = (float)(state >> 8) * 0x1p-20f - 8.0f;
        other[i] = x[i] * 0.75f;
    }
    x[5 * COLS + 4000] = NAN;
    for (int r = 0; r < ROWS; ++r) {
        temperature[r] = 0.5 + 0.01 * r;
        top_k[r] = r % 3 ? COLS : 50;
        top_p[r] = r % 4 ? 1.0 : 0.9;
        min_p[r] = r % 5 ? 0.0 : 0.02;
        for (int j = 0; j < DRAWS; ++j) {
            ids[r * DRAWS + j] = (r * 331 + j * 997) % COLS;
            uniforms[r * DRAWS + j] = 0.3 * (j + 1);
        }
    }
    int failures = 0;
    if (pthread_barrier_init(&barrier, NULL, THREADS) != 0)
        abort();
    for (int round = 0; round < rounds; ++round)
        failures += check_all(round % 2);
    pthread_barrier_destroy(&barrier);
    printf("%d threads, %d rounds of all operations: %d failures\n", THREADS, rounds, failures);
    return failures != 0;
}
