/* Fuzzing: an operation on a batch that the bytes of the input describe. What every row gives by
 * itself, gathered to a contiguous array and treated by the portable code, has to be what every
 * instruction set gives for the batch as it lies there, bit by bit (of NaN only that it is NaN), and
 * nothing is written beside the results. All memory is of the exact size, for the sanitizers.
 *
 * For clang's -fsanitize=fuzzer, or with fuzz_main.c for any compiler. */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../src/internal.h"
#include "operations.h"

enum { MAX_AXES = 3, MOST = 6000, UNTOUCHED = 0x5a };

/* ---- the bytes of the input, and where they end those of a generator that the first ones seed */

typedef struct source {
    const uint8_t *data;
    size_t left;
    uint64_t state;
} source;

static uint64_t next_bits(source *s)
{
    if (s->left >= 4) {
        uint32_t word;
        memcpy(&word, s->data, 4);
        s->data += 4;
        s->left -= 4;
        s->state += word;
    }
    s->state += UINT64_C(0x9e3779b97f4a7c15); /* SplitMix64 */
    uint64_t z = s->state;
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

/* A number in [0, n). A byte of the input each while there are some. */
static int64_t pick(source *s, int64_t n)
{
    if (s->left) {
        const int64_t byte = *s->data++;
        --s->left;
        s->state = (s->state ^ (uint64_t)byte) * UINT64_C(0x100000001b3);
        if (n <= 256)
            return byte % n;
    }
    return (int64_t)(next_bits(s) >> 1) % n;
}

static double uniform(source *s) { return (double)(next_bits(s) >> 11) * 0x1p-53; }

/* ---- memory of the exact size, all of it given back at the end of a case */

static void *blocks[64];
static int used;

static void *take(size_t bytes)
{
    void *p = malloc(bytes ? bytes : 1);
    if (!p || used == (int)(sizeof blocks / sizeof *blocks))
        abort();
    blocks[used++] = p;
    return p;
}

/* Aligned to 64 bytes, and dirty unless valgrind should see what is not initialised. */
static void *take_scratch(size_t bytes, int dirty)
{
    char *p = (char *)take(bytes + 64);
    if (dirty)
        memset(p, dirty, bytes + 64);
    /* The end of the memory is the end of the scratch, but for what alignment takes. */
    return p + ((64 - (uintptr_t)p % 64) % 64);
}

/* ---- a case */

typedef struct layout {
    int64_t stride[2 * MAX_AXES];
    int64_t first, span; /* where the entry 0 lies, and how many entries the memory has */
} layout;

typedef struct shape {
    int row_axes, col_axes;
    int64_t size[2 * MAX_AXES];
    int64_t rows, cols;
} shape;

/* Strides for the first `count` axes: in any order, with gaps, backwards, and 0 where `repeats` lets
 * them; in C order without a source. */
static layout make_layout(source *s, const shape *sh, int count, int repeats)
{
    layout l;
    memset(&l, 0, sizeof l);
    int order[2 * MAX_AXES];
    for (int i = 0; i < count; ++i)
        order[i] = i;
    const int64_t kind = s ? pick(s, 8) : 0;
    if (kind >= 3) /* C order for the others as well */
        for (int i = count - 1; i > 0; --i) {
            const int j = (int)pick(s, i + 1), t = order[i];
            order[i] = order[j];
            order[j] = t;
        }
    int64_t step = 1;
    l.span = 1;
    for (int i = count - 1; i >= 0; --i) {
        const int axis = order[i];
        const int64_t n = sh->size[axis], odd = kind >= 5 ? pick(s, 12) : 11;
        if (odd < 2)
            step *= 2 + odd;
        if (odd == 2 && repeats)
            continue; /* a stride of 0 */
        l.stride[axis] = odd == 3 ? -step : step;
        if (n > 0 && odd == 3)
            l.first += (n - 1) * step;
        if (n > 0)
            l.span += (n - 1) * step;
        step *= n > 0 ? n : 1;
    }
    if (sh->rows == 0 || (sh->cols == 0 && count > sh->row_axes))
        l.span = 0;
    return l;
}

/* Where an entry of a row lies. */
static int64_t place_of(const layout *l, const shape *sh, int64_t row, int64_t col)
{
    int64_t at = l->first;
    for (int i = sh->row_axes - 1; i >= 0; row /= sh->size[i--])
        at += row % sh->size[i] * l->stride[i];
    if (col)
        for (int i = sh->row_axes + sh->col_axes - 1; i >= sh->row_axes; col /= sh->size[i--])
            at += col % sh->size[i] * l->stride[i];
    return at;
}

static int64_t make_size(source *s, int64_t most)
{
    static const int64_t edges[] = {15, 16,  17,  31,  32,  33,  63, 64,
                                    65, 127, 128, 129, 255, 256, 257};
    static const int64_t far[] = {511, 1024, 2047, 2048, 2049, 4095, 4096, 4097, 5003};
    const int64_t kind = pick(s, 16);
    int64_t n = kind < 7    ? pick(s, 12)
                : kind < 11 ? pick(s, 80)
                : kind < 13 ? edges[pick(s, sizeof edges / sizeof *edges)]
                : kind < 15 ? pick(s, 300)
                            : far[pick(s, sizeof far / sizeof *far)] + pick(s, 2);
    return n < most ? n : most;
}

static void put(void *p, int64_t i, fastsoftmax_dtype dtype, double value)
{
    switch (dtype) {
    case FASTSOFTMAX_F32:
        ((float *)p)[i] = (float)value;
        break;
    case FASTSOFTMAX_F64:
        ((double *)p)[i] = value;
        break;
    case FASTSOFTMAX_F16:
        ((uint16_t *)p)[i] = fsm_half_of_float((float)value);
        break;
    case FASTSOFTMAX_BF16:
        ((uint16_t *)p)[i] = fsm_bfloat_of_float((float)value);
        break;
    }
}

static double largest(fastsoftmax_dtype dtype)
{
    return dtype == FASTSOFTMAX_F64   ? DBL_MAX
           : dtype == FASTSOFTMAX_F16 ? 65504.0
                                      : 0x1.fep127; /* also of bfloat16 */
}

/* Logits of one of several kinds. Those that are converted to a narrower type stay in its range. */
static void fill(source *s, void *p, int64_t n, fastsoftmax_dtype dtype)
{
    static const double scales[] = {0.1, 1.0, 8.0, 100.0, 3000.0};
    const double most = largest(dtype), scale = scales[pick(s, 5)];
    const int64_t kind = pick(s, 10), rare = 1 + pick(s, 40), size = (int64_t)fsm_size_of(dtype);
    const double specials[] = {(double)NAN, (double)INFINITY, -(double)INFINITY, most,
                               -most,       0.0,              -0.0,              most / 4};
    const double special = specials[pick(s, 8)];
    for (int64_t i = 0; i < n; ++i) {
        double value = 0.0;
        if (kind < 3)
            value = floor(64.0 * (uniform(s) + uniform(s) - 1.0)) / 8.0;
        else if (kind < 7)
            value = scale * (uniform(s) + uniform(s) + uniform(s) - 1.5);
        else if (kind == 7)
            value = (uniform(s) - 0.5) * 2.0 * most;
        else if (kind == 8)
            value = (double)(next_bits(s) % 3);
        if (kind == 9) {
            const uint64_t bits = next_bits(s);
            memcpy((char *)p + i * size, &bits, (size_t)size);
            continue;
        }
        if (kind % 2 && next_bits(s) % (uint64_t)rare == 0)
            value = special;
        put(p, i, dtype, value);
    }
}

static double make_temperature(source *s, int bad)
{
    static const double some[] = {1.0,   0.7,    2.5,    0.05,         40.0,
                                  0.0,   1e-30,  1e-45,  4.9e-324,     1e-310,
                                  1e30,  1e300,  1e-3,   2.938736e-39, 8.0};
    if (bad && pick(s, 6) == 0)
        return pick(s, 2) ? (double)NAN : -1.0;
    const int64_t kind = pick(s, 20);
    if (kind == 19)
        return (double)INFINITY;
    if (kind == 18)
        return ldexp(1.0 + uniform(s), (int)pick(s, 256) * 8 - 1070);
    return kind < 15 ? some[kind] : 0.2 + 2.0 * uniform(s);
}

static const double shares[] = {1.0, 0.0, 0.95, 0.5, 0.02, 1e-9, 0.999999};
static double make_share(source *s, double off)
{
    const int64_t kind = pick(s, 10);
    return kind < 3 ? off : kind < 9 ? shares[kind - 3 + (kind > 5)] : uniform(s);
}

typedef struct test_case {
    operation op;
    shape sh;
    layout x, out, where, temperature;
    fastsoftmax_axis axes[2 * MAX_AXES], other_axes[2 * MAX_AXES];
    arguments a;
    fastsoftmax_edits edits;
    const uint8_t *where_memory;
    int in_place, dirty;
} test_case;

static void fail(const test_case *t, const char *what, int isa)
{
    fprintf(stderr, "%s differs: %s, %s, dtypes %s and %s, shape", what,
            operation_names[t->op], isa_names[isa], dtype_names[t->a.batch.x_dtype],
            dtype_names[t->a.batch.out_dtype]);
    for (int i = 0; i < t->sh.row_axes + t->sh.col_axes; ++i)
        fprintf(stderr, "%s%lld", i == t->sh.row_axes ? " | " : " ", (long long)t->sh.size[i]);
    fprintf(stderr, ", m %lld%s%s%s%s\n", (long long)t->a.m, t->where_memory ? ", where" : "",
            t->a.batch.bitmask ? ", bitmask" : "", t->a.batch.edits ? ", edits" : "",
            t->in_place ? ", in place" : "");
    abort();
}

static void fail_on(const test_case *t, const char *what, int isa, size_t index, const void *want,
                    const void *got, size_t size)
{
    uint64_t a = 0, b = 0;
    memcpy(&a, want, size);
    memcpy(&b, got, size);
    fprintf(stderr, "number %zu is %0*llx and not %0*llx: ", index, (int)(2 * size),
            (unsigned long long)b, (int)(2 * size), (unsigned long long)a);
    fail(t, what, isa);
}

/* Numbers of one type that are equal to the last bit, or both NaN. */
static int same(const void *a, const void *b, fastsoftmax_dtype dtype)
{
    const size_t size = fsm_size_of(dtype);
    if (memcmp(a, b, size) == 0)
        return 1;
    uint64_t x = 0, y = 0;
    memcpy(&x, a, size);
    memcpy(&y, b, size);
    static const uint64_t infinity[DTYPES] = {0x7f800000, UINT64_C(0x7ff0000000000000), 0x7c00,
                                              0x7f80};
    const uint64_t magnitude = (UINT64_C(1) << (8 * size - 1)) - 1;
    return (x & magnitude) > infinity[dtype] && (y & magnitude) > infinity[dtype];
}

static void make_shape(source *s, test_case *t)
{
    shape *sh = &t->sh;
    sh->row_axes = (int)pick(s, MAX_AXES + 1);
    sh->col_axes = (int)pick(s, 8);
    sh->col_axes = sh->col_axes > MAX_AXES ? 1 : sh->col_axes;
    if (t->op >= CONTIGUOUS && t->op < TOKEN_LOGPROBS)
        sh->row_axes = sh->col_axes = 1;
    const int64_t kind = pick(s, 256); /* many executions see more than large ones */
    int64_t left = kind == 0 ? 4 * MOST : kind < 8 ? MOST : MOST / 10;
    for (int i = sh->row_axes + sh->col_axes - 1; i >= 0; --i) {
        const int last = i == sh->row_axes - 1 || i == sh->row_axes + sh->col_axes - 1;
        sh->size[i] = last ? make_size(s, left) : pick(s, 24) == 0 ? 0 : 1 + pick(s, 4);
        if (sh->size[i] > left)
            sh->size[i] = left;
        left = sh->size[i] > 1 ? left / sh->size[i] : left;
    }
    sh->rows = sh->cols = 1;
    for (int i = 0; i < sh->row_axes; ++i)
        sh->rows *= sh->size[i];
    for (int i = 0; i < sh->col_axes; ++i)
        sh->cols *= sh->size[sh->row_axes + i];
}

/* A bitmask, edits, filters, tokens, uniforms, maxima: what goes by rows in their order. */
static void make_rest(source *s, test_case *t)
{
    arguments *a = &t->a;
    const int64_t rows = t->sh.rows, cols = t->sh.cols, words = (cols + 31) / 32;
    const int plain = t->op >= CONTIGUOUS && t->op < TOKEN_LOGPROBS;
    if (!plain && pick(s, 4) == 0) {
        const int64_t stride = pick(s, 4) == 0 ? 0 : words + pick(s, 3);
        const int64_t count = rows && words ? (rows - 1) * stride + words : 0;
        uint32_t *bits = (uint32_t *)take((size_t)count * 4);
        const int64_t kind = pick(s, 4);
        for (int64_t i = 0; i < count; ++i)
            bits[i] = (uint32_t)(kind == 0   ? 0
                                 : kind == 1 ? UINT32_MAX
                                 : kind == 2 ? next_bits(s) & next_bits(s) & next_bits(s)
                                             : next_bits(s));
        a->batch.bitmask = bits;
        a->batch.bitmask_stride = stride;
    }
    if (!plain && pick(s, 4) == 0) {
        const int64_t each = cols ? 1 + pick(s, 12) : 1;
        int64_t *offsets = (int64_t *)take((size_t)(rows + 1) * 8);
        offsets[0] = pick(s, 3);
        for (int64_t r = 0; r < rows; ++r)
            offsets[r + 1] = offsets[r] + pick(s, (each < cols ? each : cols) + 1);
        const size_t count = (size_t)offsets[rows];
        int64_t *ids = (int64_t *)take(count * 8);
        double *bias = (double *)take(count * 8), *penalty = (double *)take(count * 8),
               *reduction = (double *)take(count * 8);
        memset(ids, 0, count * 8);
        for (size_t i = 0; i < count; ++i) {
            bias[i] = pick(s, 6) == 0 ? -(double)INFINITY : 8.0 * uniform(s) - 4.0;
            penalty[i] = pick(s, 2) ? 1.0 : 0.5 + uniform(s);
            reduction[i] = pick(s, 2) ? 0.0 : uniform(s);
        }
        for (int64_t r = 0; r < rows; ++r) {
            const int64_t n = offsets[r + 1] - offsets[r];
            for (int64_t i = 0; i < n; ++i) /* ascending, none twice */
                ids[offsets[r] + i] = i * cols / n + pick(s, (i + 1) * cols / n - i * cols / n);
        }
        t->edits.offsets = offsets;
        t->edits.ids = ids;
        t->edits.bias = bias;
        t->edits.penalty = penalty;
        t->edits.reduction = reduction;
        a->batch.edits = &t->edits;
    }
    if (t->op == TOPK)
        a->m = cols ? 1 + pick(s, cols) % (pick(s, 4) ? 24 : cols) : 1;
    else
        a->m = pick(s, 4);
    if (a->m > 40 && t->op == TOPK && rows > 8)
        a->m = 40;
    const size_t all = (size_t)(rows * a->m);
    int64_t *ids = (int64_t *)take(all * 8);
    double *uniforms = (double *)take(all * 8);
    const int none = pick(s, 4) == 0;
    for (size_t i = 0; i < all; ++i) {
        ids[i] = cols && !none ? pick(s, cols + 1) - 1 : -1;
        const int64_t kind = pick(s, 8);
        uniforms[i] = kind == 0 ? 0.0 : kind == 1 ? 1.0 - 0x1p-53 : uniform(s);
    }
    a->ids = ids;
    a->uniforms = uniforms;
    int64_t *top_k = (int64_t *)take((size_t)rows * 8);
    double *top_p = (double *)take((size_t)rows * 8), *min_p = (double *)take((size_t)rows * 8);
    const int64_t one = pick(s, 4);
    for (int64_t r = 0; r < rows; ++r) {
        if (r && one) {
            top_k[r] = top_k[0];
            top_p[r] = top_p[0];
            min_p[r] = min_p[0];
            continue;
        }
        top_k[r] = pick(s, 3) == 0 ? cols + pick(s, 2) : 1 + pick(s, cols ? cols : 1);
        if (pick(s, 2))
            top_k[r] = 1 + top_k[r] % 20;
        top_p[r] = make_share(s, 1.0);
        min_p[r] = make_share(s, 0.0);
        if (top_k[r] < 1)
            top_k[r] = 1;
    }
    a->filters.top_k = top_k;
    a->filters.top_p = top_p;
    a->filters.min_p = min_p;
    a->row_cut = pick(s, rows + 1);
    a->block_cut = pick(s, 3);
}

static fastsoftmax_status run(test_case *t, const arguments *a, int isa)
{
    void *scratch = take_scratch(scratch_bytes(t->op, a, (fastsoftmax_isa)isa), t->dirty);
    void *shared = t->op >= BY_BLOCKS && t->op < CONTIGUOUS
                       ? take_scratch(scratch_bytes(t->op, a, (fastsoftmax_isa)isa), t->dirty)
                       : NULL;
    return run_operation(t->op, a, (fastsoftmax_isa)isa, scratch, shared);
}

/* What every row gives by itself, by the portable code on contiguous copies. Results are in the order
 * of the rows; `out` is contiguous. */
static fastsoftmax_status run_reference(test_case *t, operation op, arguments *all, void *out)
{
    const arguments *a = &t->a;
    const fastsoftmax_dtype x_dtype = a->batch.x_dtype, out_dtype = a->batch.out_dtype;
    const int64_t cols = t->sh.cols, m = a->m;
    const size_t size = fsm_size_of(x_dtype), other_size = fsm_size_of(a->other.x_dtype);
    char *x = (char *)take((size_t)cols * size), *other = (char *)take((size_t)cols * other_size);
    uint8_t *where = (uint8_t *)take((size_t)cols);
    const fastsoftmax_axis axes[2] = {{1, cols, writes_rows(op) ? cols : 1, cols, 1},
                                      {cols, 1, 1, 1, 0}};
    const operation kept = t->op;
    t->op = op >= BY_BLOCKS && op < TOKEN_LOGPROBS ? (operation)(op % 3) : op;
    fastsoftmax_status status = FASTSOFTMAX_OK;
    const int mark = used;
    for (int64_t r = 0; r < t->sh.rows && status == FASTSOFTMAX_OK; ++r) {
        for (int64_t c = 0; c < cols; ++c) {
            const int64_t at = place_of(&t->x, &t->sh, r, c);
            memcpy(x + (size_t)c * size,
                   (const char *)a->batch.x + (at - t->x.first) * (int64_t)size, size);
            if (op == KL_DIVERGENCE)
                memcpy(other + (size_t)c * other_size,
                       (const char *)a->other.x + (at - t->x.first) * (int64_t)other_size,
                       other_size);
            where[c] = 1;
            if (t->where_memory)
                where[c] = t->where_memory[place_of(&t->where, &t->sh, r, c)];
            if (a->batch.bitmask &&
                !(a->batch.bitmask[r * a->batch.bitmask_stride + c / 32] >> (c % 32) & 1))
                where[c] = 0;
        }
        const double temperature =
            a->batch.temperature[place_of(&t->temperature, &t->sh, r, 0) - t->temperature.first];
        fastsoftmax_edits edits = t->edits;
        arguments one = *a;
        one.rows = 1;
        one.row_cut = 0;
        one.batch.row_axes = one.batch.col_axes = 1;
        one.batch.axes = axes;
        one.batch.x = x;
        one.batch.where = where;
        one.batch.bitmask = NULL;
        one.batch.temperature = &temperature;
        one.batch.out =
            (char *)out + (writes_rows(op) ? r * cols : r) * (int64_t)fsm_size_of(out_dtype);
        if (a->batch.edits) {
            edits.offsets += r;
            one.batch.edits = &edits;
        }
        one.other = one.batch;
        one.other.x = other;
        one.other.x_dtype = a->other.x_dtype;
        one.ids += r * m;
        one.uniforms += r * m;
        one.filters.top_k += r;
        one.filters.top_p += r;
        one.filters.min_p += r;
        if (a->maximum) {
            one.maximum += r;
            one.rest += r;
        }
        if (op == SURVIVORS)
            one.offsets += r; /* which need not begin at 0 */
        const int64_t step = op == MOMENTS ? 4 : op == REDUCE || op == KL_DIVERGENCE ? 1 : m;
        const int64_t from = op == SURVIVORS ? 0 : r * step;
        one.real = all->real + from;
        one.more = all->more + r;
        one.whole = all->whole + (op == COUNT_SURVIVORS ? r : from);
        status = run(t, &one, FASTSOFTMAX_ISA_SCALAR);
        while (used > mark)
            free(blocks[--used]);
    }
    t->op = kept;
    return status;
}

static void take_results(operation op, arguments *a)
{
    size_t real, more, whole;
    count_results(op, a, &real, &more, &whole);
    a->real = (double *)take(real * 8);
    a->more = (double *)take(more * 8);
    a->whole = (int64_t *)take(whole * 8);
    memset(a->real, UNTOUCHED, real * 8);
    memset(a->more, UNTOUCHED, more * 8);
    memset(a->whole, UNTOUCHED, whole * 8);
}

static void compare(test_case *t, const arguments *want, const arguments *got, const char *out,
                    const char *memory, int isa)
{
    size_t real, more, whole;
    count_results(t->op, want, &real, &more, &whole);
    for (size_t i = 0; i < real; ++i)
        if (!same(want->real + i, got->real + i, FASTSOFTMAX_F64))
            fail_on(t, "a real result", isa, i, want->real + i, got->real + i, 8);
    for (size_t i = 0; i < more; ++i)
        if (!same(want->more + i, got->more + i, FASTSOFTMAX_F64))
            fail_on(t, "another real result", isa, i, want->more + i, got->more + i, 8);
    for (size_t i = 0; i < whole; ++i)
        if (want->whole[i] != got->whole[i])
            fail_on(t, "a whole number", isa, i, want->whole + i, got->whole + i, 8);
    if (!writes_out(t->op))
        return;
    const size_t size = fsm_size_of(t->a.batch.out_dtype);
    const int64_t cols = writes_rows(t->op) ? t->sh.cols : 1;
    char *expected = (char *)take((size_t)t->out.span * size);
    memset(expected, UNTOUCHED, (size_t)t->out.span * size);
    for (int64_t r = 0; r < t->sh.rows; ++r)
        for (int64_t c = 0; c < cols; ++c) {
            const char *a = out + (r * cols + c) * (int64_t)size;
            const size_t at = (size_t)place_of(&t->out, &t->sh, r, c) * size;
            if (!same(a, memory + at, t->a.batch.out_dtype))
                fail_on(t, "an output", isa, (size_t)(r * cols + c), a, memory + at, size);
            memcpy(expected + at, memory + at, size);
        }
    if (!t->in_place && memcmp(expected, memory, (size_t)t->out.span * size) != 0)
        fail(t, "what lies between the outputs", isa);
}

static void run_case(source *s)
{
    static const int dirt[] = {0, 0xff, UNTOUCHED};
    test_case t;
    memset(&t, 0, sizeof t);
    arguments *a = &t.a;
    t.op = (operation)pick(s, OPERATIONS);
    a->batch.x_dtype = (fastsoftmax_dtype)pick(s, DTYPES);
    a->batch.out_dtype = pick(s, 2) ? a->batch.x_dtype : (fastsoftmax_dtype)pick(s, DTYPES);
    const int plain = t.op >= CONTIGUOUS && t.op < TOKEN_LOGPROBS;
    if (plain)
        a->batch.out_dtype = a->batch.x_dtype;
    make_shape(s, &t);
    shape *sh = &t.sh;
    if (t.op == TOPK && sh->cols == 0)
        return; /* there is no k */
    const int axes = sh->row_axes + sh->col_axes, rows_only = !writes_rows(t.op);
    a->rows = sh->rows;
    a->cols = sh->cols;
    t.dirty = dirt[pick(s, 3)];
    t.in_place = writes_rows(t.op) && a->batch.out_dtype == a->batch.x_dtype &&
                 pick(s, 4) == 0;
    t.x = make_layout(plain ? NULL : s, sh, axes, !t.in_place);
    t.out = make_layout(plain ? NULL : s, sh, rows_only ? sh->row_axes : axes, 0);
    if (t.in_place)
        t.out = t.x;
    t.where = make_layout(s, sh, axes, 1);
    t.temperature = make_layout(s, sh, sh->row_axes, 1);
    if (plain) /* one for all rows */
        memset(t.temperature.stride, 0, sizeof t.temperature.stride);

    const size_t x_size = fsm_size_of(a->batch.x_dtype), out_size = fsm_size_of(a->batch.out_dtype);
    char *x = (char *)take((size_t)t.x.span * x_size);
    fill(s, x, t.x.span, a->batch.x_dtype);
    if (!plain && pick(s, 3) == 0) {
        uint8_t *where = (uint8_t *)take((size_t)t.where.span);
        const uint64_t kind = (uint64_t)pick(s, 4);
        for (int64_t i = 0; i < t.where.span; ++i)
            where[i] = (uint8_t)(kind == 0 ? 0 : next_bits(s) % (kind + 1) != 0);
        t.where_memory = where;
        a->batch.where = where + (t.where.span ? t.where.first : 0);
    }
    double *temperature = (double *)take((size_t)t.temperature.span * 8);
    const int bad = pick(s, 40) == 0, even = pick(s, 2) == 0;
    for (int64_t i = 0; i < t.temperature.span; ++i)
        temperature[i] = i && even ? temperature[0] : make_temperature(s, bad);
    a->batch.temperature = temperature + (t.temperature.span ? t.temperature.first : 0);
    a->batch.x = x + (t.x.span ? t.x.first : 0) * (int64_t)x_size;
    a->batch.row_axes = sh->row_axes;
    a->batch.col_axes = sh->col_axes;
    for (int i = 0; i < axes; ++i) {
        fastsoftmax_axis *axis = &t.axes[i];
        axis->size = sh->size[i];
        axis->x = t.x.stride[i];
        axis->out = t.out.stride[i];
        axis->where = t.where.stride[i];
        axis->temperature = i < sh->row_axes ? t.temperature.stride[i] : 0;
    }
    a->batch.axes = t.axes;
    /* Results of more than 4 MB are written around the caches: there are to be rows that no call asks
     * for. */
    if (!plain && writes_rows(t.op) && !t.in_place && sh->row_axes && pick(s, 3) == 0)
        t.axes[0].size += 1 << 22;
    make_rest(s, &t);
    a->other = a->batch;
    a->other.x_dtype = pick(s, 2) ? a->batch.x_dtype : (fastsoftmax_dtype)pick(s, DTYPES);
    if (t.op == KL_DIVERGENCE) {
        char *other = (char *)take((size_t)t.x.span * fsm_size_of(a->other.x_dtype));
        fill(s, other, t.x.span, a->other.x_dtype);
        a->other.x = other + (t.x.span ? t.x.first : 0) * (int64_t)fsm_size_of(a->other.x_dtype);
    }

    fastsoftmax_status status = FASTSOFTMAX_OK;
    if (t.op == NORMALIZE || t.op == NORMALIZE_LOG) {
        arguments parts = *a;
        take_results(REDUCE, &parts);
        status = run_reference(&t, REDUCE, &parts, NULL);
        for (int64_t r = 0; r < sh->rows && status == FASTSOFTMAX_OK; ++r)
            if (pick(s, 4) == 0) {
                parts.real[r] += 1.0; /* of another part of the row */
                parts.more[r] += uniform(s);
            }
        a->maximum = parts.real;
        a->rest = parts.more;
    } else if (t.op == SURVIVORS) {
        arguments counts = *a;
        take_results(COUNT_SURVIVORS, &counts);
        status = run_reference(&t, COUNT_SURVIVORS, &counts, NULL);
        int64_t *offsets = (int64_t *)take((size_t)(sh->rows + 1) * 8);
        offsets[0] = pick(s, 3);
        for (int64_t r = 0; r < sh->rows; ++r)
            offsets[r + 1] = offsets[r] + (status == FASTSOFTMAX_OK ? counts.whole[r] : 0);
        a->offsets = offsets;
    }
    const size_t numbers = (size_t)(writes_rows(t.op) ? sh->rows * sh->cols : sh->rows);
    char *out = (char *)take(numbers * out_size);
    arguments want = *a;
    take_results(t.op, &want);
    if (status == FASTSOFTMAX_OK)
        status = run_reference(&t, t.op, &want, out);
    if (status != FASTSOFTMAX_OK)
        a->row_cut = 0; /* refused as a whole */

    const int mark = used;
    for (int isa = 0; isa < ISAS; ++isa) {
        if (!fastsoftmax_has_isa((fastsoftmax_isa)isa))
            continue;
        arguments got = *a;
        take_results(t.op, &got);
        char *memory = (char *)take((size_t)t.out.span * out_size);
        memset(memory, UNTOUCHED, (size_t)t.out.span * out_size);
        if (t.in_place) {
            memcpy(memory, x, (size_t)t.x.span * x_size);
            got.batch.x = memory + (t.x.span ? t.x.first : 0) * (int64_t)x_size;
        }
        got.batch.out = memory + (t.out.span ? t.out.first : 0) * (int64_t)out_size;
        const int by_blocks = t.op >= BY_BLOCKS && t.op < CONTIGUOUS;
        if (run(&t, &got, isa) != status)
            fail(&t, "the status", isa);
        if (status == FASTSOFTMAX_OK)
            compare(&t, &want, &got, out, memory, isa);
        else if (!by_blocks) /* which goes row by row */
            for (int64_t i = 0; !t.in_place && i < t.out.span * (int64_t)out_size; ++i)
                if (memory[i] != UNTOUCHED)
                    fail(&t, "the output of a call that was refused", isa);
        while (used > mark)
            free(blocks[--used]);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    source s = {data, size, 0};
    run_case(&s);
    while (used)
        free(blocks[--used]);
    return 0;
}
