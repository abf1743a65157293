/* Every operation, instruction set and dtype on rows of every length up to 300 and around the blocks,
 * with each array in memory of its own that ends where a page begins that nobody may touch, then with
 * each beginning where such a page ends: one entry read or written too far ends the test, which says
 * in which case. (Prefetches do no harm there.) And short rows of which each has such a page behind it.
 * For POSIX. */
#define _GNU_SOURCE
#include <math.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../src/internal.h"
#include "operations.h"

/* ---- memory between two such pages */

enum {
    X, OTHER, OUT, WHERE, TEMPERATURE, BITMASK, IDS, UNIFORMS, TOP_K, TOP_P, MIN_P, EDIT_OFFSETS,
    EDIT_IDS, BIAS, PENALTY, REDUCTION, OFFSETS, MAXIMUM, REST, REAL, MORE, WHOLE, SCRATCH, SHARED,
    AXES, FENCES
};
static char *fences[FENCES];
static const size_t inside = (size_t)1 << 22;
static int at_end;

static void build_fences(void)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    for (int i = 0; i < FENCES; ++i) {
        char *p = (char *)mmap(NULL, inside + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (p == MAP_FAILED || mprotect(p + page, inside, PROT_READ | PROT_WRITE) != 0) {
            perror("mmap");
            exit(2);
        }
        fences[i] = p + page;
    }
}

static void *place(int fence, size_t bytes, size_t align)
{
    if (bytes > inside) {
        fprintf(stderr, "%zu bytes do not fit\n", bytes);
        exit(2);
    }
    return at_end ? (void *)((uintptr_t)(fences[fence] + inside - bytes) & ~(uintptr_t)(align - 1))
                  : fences[fence];
}

/* ---- a case */

enum { ROWS = 18, LONGEST = 4097, M = 3 };

/* Row axis and column axis of the logits: one after another, side by side, every second entry. */
enum { IN_ROWS, IN_COLUMNS, WITH_GAPS };
typedef struct variant {
    int rows, layout, masked, edited, more_rows;
} variant;
/* With more rows than are asked for, results come to 4 MB and are written around the caches. */
enum { SPARE = 1 << 22 };
static const variant variants[] = {
    {1, IN_ROWS, 0, 0, 0},      {3, IN_ROWS, 1, 0, 0},     {ROWS, IN_ROWS, 0, 0, 0},
    {ROWS, IN_COLUMNS, 0, 0, 0}, {3, WITH_GAPS, 0, 1, 0},   {3, IN_COLUMNS, 1, 0, 0},
    {ROWS, WITH_GAPS, 0, 0, 0}, {2, IN_ROWS, 0, 0, SPARE},  {ROWS, IN_ROWS, 0, 0, SPARE},
    {ROWS, IN_COLUMNS, 0, 0, SPARE},
};

static operation op;
static int isa, x_dtype, out_dtype, cols, which, rows_apart; /* the latter instead of a variant */

static void report(int number)
{
    char text[256];
    const variant apart = {rows_apart, IN_ROWS, 0, 0, 0};
    const variant *v = rows_apart ? &apart : &variants[which];
    const int n = snprintf(text, sizeof text,
                           "signal %d: %s, %s, dtypes %s and %s, %d rows of %d, layout %d%s%s%s, "
                           "buffers at the %s of their pages\n",
                           number, operation_names[op], isa_names[isa], dtype_names[x_dtype],
                           dtype_names[out_dtype], v->rows, cols, v->layout,
                           v->masked ? ", masked" : "", v->edited ? ", edited" : "",
                           v->more_rows ? ", around the caches" : "", at_end ? "end" : "beginning");
    if (write(2, text, (size_t)n) < 0)
        _exit(3);
    _exit(1);
}

static uint32_t state = 1;
static double uniform(void)
{
    state = state * 1664525u + 1013904223u;
    return (state >> 8) * 0x1p-24;
}

static void put(void *p, int64_t i, int dtype, double value)
{
    if (dtype == FASTSOFTMAX_F32)
        ((float *)p)[i] = (float)value;
    else if (dtype == FASTSOFTMAX_F64)
        ((double *)p)[i] = value;
    else if (dtype == FASTSOFTMAX_F16)
        ((uint16_t *)p)[i] = fsm_half_of_float((float)value);
    else
        ((uint16_t *)p)[i] = fsm_bfloat_of_float((float)value);
}

static double values[ROWS * LONGEST];

/* Numbers from where no axis is empty; of an array with gaps the last entry is the last one used. */
static int64_t span(int64_t rows, int64_t n, int64_t row, int64_t col)
{
    return rows && n ? (rows - 1) * row + (n - 1) * col + 1 : 0;
}

static void *place_logits(int fence, int dtype, int64_t rows, int64_t row, int64_t col)
{
    void *p = place(fence, (size_t)span(rows, cols, row, col) * fsm_size_of((fastsoftmax_dtype)dtype),
                    1);
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = 0; c < cols; ++c)
            put(p, r * row + c * col, dtype, values[r * cols + c]);
    return p;
}

static void run_case(void)
{
    const variant *v = &variants[which];
    const int64_t rows = v->rows, n = cols, words = (n + 31) / 32;
    const int plain = op >= CONTIGUOUS && op < TOKEN_LOGPROBS;
    if (plain && (v->layout != IN_ROWS || v->masked || v->edited || x_dtype != out_dtype))
        return;
    if (v->more_rows && (plain || !writes_rows(op)))
        return;
    const int64_t row = v->layout == IN_COLUMNS ? 1 : v->layout == WITH_GAPS ? 2 * n : n;
    const int64_t col = v->layout == IN_COLUMNS ? rows : v->layout == WITH_GAPS ? 2 : 1;
    fastsoftmax_axis *axes = (fastsoftmax_axis *)place(AXES, 2 * sizeof *axes, 1);
    const int64_t out_row = writes_rows(op) ? row : 1;
    const fastsoftmax_axis both[2] = {{rows + v->more_rows, row, out_row, row, plain ? 0 : 1},
                                      {n, col, col, col, 0}};
    memcpy(axes, both, sizeof both);
    double *temperature =
        (double *)place(TEMPERATURE, (size_t)(plain ? 1 : rows) * sizeof(double), 1);
    for (int64_t r = 0; r < (plain ? 1 : rows); ++r)
        temperature[r] = r % 9 == 8 ? INFINITY : 0.7;

    arguments a;
    memset(&a, 0, sizeof a);
    a.rows = rows;
    a.cols = n;
    a.m = op == TOPK ? (n < M ? n : M) : M;
    if (op == TOPK && n == 0)
        return;
    a.row_cut = rows / 2;
    a.block_cut = 1;
    a.batch.x_dtype = (fastsoftmax_dtype)x_dtype;
    a.batch.out_dtype = (fastsoftmax_dtype)out_dtype;
    a.batch.row_axes = a.batch.col_axes = 1;
    a.batch.axes = axes;
    a.batch.temperature = temperature;
    a.batch.x = place_logits(X, x_dtype, rows, row, col);
    const size_t out_bytes =
        (size_t)(writes_rows(op) ? span(rows, n, row, col) : writes_out(op) ? rows : 0) *
        fsm_size_of(a.batch.out_dtype);
    a.batch.out = place(OUT, out_bytes, 1);

    if (v->masked) {
        uint8_t *where = (uint8_t *)place(WHERE, (size_t)span(rows, n, row, col), 1);
        uint32_t *bitmask = (uint32_t *)place(BITMASK, (size_t)(rows * words) * 4, 1);
        for (int64_t i = 0; i < span(rows, n, row, col); ++i)
            where[i] = i % 5 != 0;
        memset(bitmask, 0xb7, (size_t)(rows * words) * 4);
        a.batch.where = where;
        a.batch.bitmask = bitmask;
        a.batch.bitmask_stride = words;
    }
    fastsoftmax_edits edits;
    if (v->edited) {
        const int64_t each = n < 2 ? n : 2; /* the first and the last entry */
        int64_t *offsets = (int64_t *)place(EDIT_OFFSETS, (size_t)(rows + 1) * 8, 1);
        int64_t *ids = (int64_t *)place(EDIT_IDS, (size_t)(rows * each) * 8, 1);
        double *of[3];
        for (int i = 0; i < 3; ++i)
            of[i] = (double *)place(BIAS + i, (size_t)(rows * each) * 8, 1);
        for (int64_t r = 0; r <= rows; ++r)
            offsets[r] = r * each;
        for (int64_t i = 0; i < rows * each; ++i) {
            ids[i] = i % each * (n - 1);
            of[0][i] = 0.5;
            of[1][i] = 1.5;
            of[2][i] = 0.25;
        }
        const fastsoftmax_edits all = {offsets, ids, of[0], of[1], of[2]};
        edits = all;
        a.batch.edits = &edits;
    }
    a.other = a.batch;
    if (op == KL_DIVERGENCE) {
        a.other.x_dtype = (fastsoftmax_dtype)out_dtype;
        a.other.x = place_logits(OTHER, out_dtype, rows, row, col);
    }
    int64_t *ids = (int64_t *)place(IDS, (size_t)(rows * a.m) * 8, 1);
    double *uniforms = (double *)place(UNIFORMS, (size_t)(rows * a.m) * 8, 1);
    for (int64_t i = 0; i < rows * a.m; ++i) {
        ids[i] = n ? i % 2 * (n - 1) : -1;
        uniforms[i] = uniform();
    }
    a.ids = ids;
    a.uniforms = uniforms;
    int64_t *top_k = (int64_t *)place(TOP_K, (size_t)rows * 8, 1);
    double *top_p = (double *)place(TOP_P, (size_t)rows * 8, 1);
    double *min_p = (double *)place(MIN_P, (size_t)rows * 8, 1);
    for (int64_t r = 0; r < rows; ++r) {
        top_k[r] = (r + which) % 3 == 0 ? (n ? n : 1) : 1 + n / 2;
        top_p[r] = (r + which) % 2 ? 0.9 : 1.0;
        min_p[r] = (r + which) % 4 ? 0.0 : 0.01;
    }
    a.filters.top_k = top_k;
    a.filters.top_p = top_p;
    a.filters.min_p = min_p;

    operation steps[2] = {op, op};
    const int prepared = op == NORMALIZE || op == NORMALIZE_LOG || op == SURVIVORS;
    if (prepared)
        steps[0] = op == SURVIVORS ? COUNT_SURVIVORS : REDUCE;
    for (int i = !prepared; i < 2; ++i) {
        size_t real, more, whole;
        count_results(steps[i], &a, &real, &more, &whole);
        a.real = (double *)place(REAL, real * 8, 1);
        a.more = (double *)place(MORE, more * 8, 1);
        a.whole = (int64_t *)place(WHOLE, whole * 8, 1);
        const size_t bytes = scratch_bytes(steps[i], &a, (fastsoftmax_isa)isa);
        void *scratch = place(SCRATCH, bytes, 64), *shared = place(SHARED, bytes, 64);
        if (run_operation(steps[i], &a, (fastsoftmax_isa)isa, scratch, shared) != FASTSOFTMAX_OK) {
            fprintf(stderr, "a call was refused: ");
            report(0);
        }
        if (i)
            break;
        if (op == SURVIVORS) {
            int64_t *offsets = (int64_t *)place(OFFSETS, (size_t)(rows + 1) * 8, 1);
            offsets[0] = 0;
            for (int64_t r = 0; r < rows; ++r)
                offsets[r + 1] = offsets[r] + a.whole[r];
            a.offsets = offsets;
        } else {
            double *maximum = (double *)place(MAXIMUM, (size_t)rows * 8, 1);
            double *rest = (double *)place(REST, (size_t)rows * 8, 1);
            memcpy(maximum, a.real, (size_t)rows * 8);
            memcpy(rest, a.more, (size_t)rows * 8);
            a.maximum = maximum;
            a.rest = rest;
        }
    }
}

/* Rows of up to 40 entries, each at the end of a page of its own. */
static long check_rows_apart(void)
{
    enum { APART = 70, MOST = 40 };
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    char *memory[2]; /* logits and results */
    long cases = 0;
    for (int i = 0; i < 2; ++i) {
        memory[i] = (char *)mmap(NULL, 2 * APART * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory[i] == MAP_FAILED) {
            perror("mmap");
            exit(2);
        }
        for (int r = 0; r < APART; ++r)
            if (mprotect(memory[i] + 2 * (size_t)r * page, page, PROT_READ | PROT_WRITE) != 0) {
                perror("mprotect");
                exit(2);
            }
    }
    const double temperature = 0.7;
    at_end = 1;
    rows_apart = APART;
    for (cols = 1; cols <= MOST; ++cols)
        for (x_dtype = 0; x_dtype < DTYPES; ++x_dtype)
            for (int o = WHOLE_ROWS; o < BY_BLOCKS; ++o)
                for (isa = 0; isa < ISAS; ++isa) {
                    if (!fastsoftmax_has_isa((fastsoftmax_isa)isa))
                        continue;
                    const size_t size = fsm_size_of((fastsoftmax_dtype)x_dtype);
                    const int64_t row = (int64_t)(2 * page / size);
                    const fastsoftmax_axis axes[2] = {{APART, row, row, 0, 0}, {cols, 1, 1, 0, 0}};
                    arguments a;
                    memset(&a, 0, sizeof a);
                    op = (operation)o;
                    out_dtype = x_dtype;
                    a.rows = a.row_cut = APART;
                    a.cols = cols;
                    a.batch.x_dtype = a.batch.out_dtype = (fastsoftmax_dtype)x_dtype;
                    a.batch.row_axes = a.batch.col_axes = 1;
                    a.batch.axes = axes;
                    a.batch.temperature = &temperature;
                    a.batch.x = memory[0] + page - (size_t)cols * size;
                    a.batch.out = memory[1] + page - (size_t)cols * size;
                    for (int r = 0; r < APART; ++r)
                        for (int c = 0; c < cols; ++c)
                            put((void *)(uintptr_t)a.batch.x, r * row + c, x_dtype, uniform());
                    void *scratch =
                        place(SCRATCH, scratch_bytes(op, &a, (fastsoftmax_isa)isa), 64);
                    if (run_operation(op, &a, (fastsoftmax_isa)isa, scratch, scratch) !=
                        FASTSOFTMAX_OK) {
                        fprintf(stderr, "a call was refused: ");
                        report(0);
                    }
                    ++cases;
                }
    rows_apart = 0;
    return cases;
}

int main(void)
{
    long cases = 0;
    build_fences();
    signal(SIGSEGV, report);
    signal(SIGBUS, report);
    cases += check_rows_apart();
    static const int far[] = {511, 513, 1025, 2047, 2048, 2049, LONGEST};
    const int lengths = 301 + (int)(sizeof far / sizeof *far);
    for (int l = 0; l < lengths; ++l) {
        cols = l <= 300 ? l : far[l - 301];
        for (int i = 0; i < ROWS * cols; ++i)
            values[i] = floor(64.0 * (uniform() + uniform() - 1.0)) / 8.0;
        if (cols)
            values[cols - 1] = -INFINITY;
        for (which = 0; which < (int)(sizeof variants / sizeof *variants); ++which)
            for (int o = 0; o < OPERATIONS; ++o)
                for (int types = 0; types < DTYPES * DTYPES; ++types) {
                    op = (operation)o;
                    x_dtype = types / DTYPES;
                    out_dtype = types % DTYPES;
                    /* Scoring and sampling know one row at a time. */
                    if (op >= TOKEN_LOGPROBS && variants[which].rows > 3)
                        continue;
                    /* Two types are one more case for results in rows, and for rows of two batches. */
                    if (x_dtype != out_dtype &&
                        (variants[which].rows != 3 || !(writes_out(op) || op == KL_DIVERGENCE)))
                        continue;
                    for (at_end = 0; at_end < 2; ++at_end)
                        for (isa = 0; isa < ISAS; ++isa)
                            if (fastsoftmax_has_isa((fastsoftmax_isa)isa)) {
                                run_case();
                                ++cases;
                            }
                }
    }
    printf("%ld cases between guard pages: no fault\n", cases);
    return 0;
}
