/* A team: threads that take the rows of a batch in turn, without the interpreter, for whose lock a
 * thread may wait longer than a piece of the work takes. The threads are Python's. One of them leads;
 * the others help, and after that wait in a loop for the next batch: a thread that sleeps takes up to
 * 50 us to wake on a virtual machine, and so does each of the calls that wake it.
 *
 * One thread leads at a time, which callers see to. All that is shared is read and written by the
 * compilers' own atomic operations, in one order for all threads, but for what describes the batch. */
#include <stddef.h>
#include <stdint.h>

typedef fastsoftmax_status (*fsm_row_function)(const fastsoftmax_batch *, int64_t, int64_t, void *);

/* Zeros at first. */
typedef struct fsm_team {
    /* The batch. It is not changed while a helper is in it. */
    fsm_row_function function;
    const fastsoftmax_batch *batch;
    int64_t step, limit; /* rows of a piece; helpers at most */
    size_t scratch_size;
    int64_t next, end; /* the first row that nobody has taken; behind the last */
    int open;          /* whether helpers may come in */
    int status;        /* of the pieces, FASTSOFTMAX_OK or one that is not */
    int helpers;       /* in the batch, or looking whether it is open */
    int waiting;       /* in fsm_team_help */
    int dismissals;
    int64_t alone; /* see fsm_team_alone */
} fsm_team;

#if defined(__GNUC__) && !defined(_WIN32)
#include <sched.h>
#include <time.h>

#define FSM_LOAD(place) __atomic_load_n(place, __ATOMIC_SEQ_CST)
#define FSM_STORE(place, value) __atomic_store_n(place, value, __ATOMIC_SEQ_CST)
#define FSM_ADD(place, value) __atomic_fetch_add(place, value, __ATOMIC_SEQ_CST)

static void fsm_pause(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb"); /* some 20 ns, where yield is nothing */
#endif
}

static int64_t fsm_nanoseconds(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static int fsm_team_supported(void) { return 1; }

/* Takes rows as long as there are any; returns how many. */
static int64_t fsm_team_take(fsm_team *team, void *scratch)
{
    const int64_t end = FSM_LOAD(&team->end);
    int64_t row, taken = 0;
    while ((row = FSM_ADD(&team->next, team->step)) < end) {
        const int64_t behind = end - row < team->step ? end : row + team->step;
        const fastsoftmax_status status = team->function(team->batch, row, behind, scratch);
        if (status != FASTSOFTMAX_OK)
            FSM_STORE(&team->status, (int)status);
        taken += behind - row;
    }
    return taken;
}

/* Applies a function to the rows [begin, end) of a batch, with up to `limit` helpers. Those need
 * `scratch_size` bytes of scratch memory each. */
static fastsoftmax_status fsm_team_lead(fsm_team *team, fsm_row_function function,
                                        const fastsoftmax_batch *batch, int64_t begin, int64_t end,
                                        int64_t step, int64_t limit, size_t scratch_size,
                                        void *scratch)
{
    team->function = function;
    team->batch = batch;
    team->step = step;
    team->limit = limit;
    team->scratch_size = scratch_size;
    FSM_STORE(&team->status, (int)FASTSOFTMAX_OK);
    FSM_STORE(&team->next, begin);
    FSM_STORE(&team->end, end);
    int64_t work = -fsm_nanoseconds(CLOCK_THREAD_CPUTIME_ID);
    FSM_STORE(&team->open, 1);
    const int64_t taken = fsm_team_take(team, scratch);
    FSM_STORE(&team->open, 0);
    work += fsm_nanoseconds(CLOCK_THREAD_CPUTIME_ID);
    /* A piece is soon done, but not by a thread that the system has put aside. */
    for (int i = 0; FSM_LOAD(&team->helpers) > 0; ++i)
        if (i < 10000)
            fsm_pause();
        else
            sched_yield();
    if (taken)
        team->alone += (int64_t)((double)work * (double)(end - begin) / (double)taken);
    return (fastsoftmax_status)FSM_LOAD(&team->status);
}

/* Helps with every batch until there has been none for `patience` ns, or helpers are dismissed; then
 * returns 0. Where a batch needs more scratch memory than is given returns how many bytes. */
static size_t fsm_team_help(fsm_team *team, void *scratch, size_t scratch_size, int64_t patience)
{
    const int dismissals = FSM_LOAD(&team->dismissals);
    int64_t until = fsm_nanoseconds(CLOCK_MONOTONIC) + patience;
    size_t needed = 0;
    FSM_ADD(&team->waiting, 1);
    while (!needed && FSM_LOAD(&team->dismissals) == dismissals &&
           fsm_nanoseconds(CLOCK_MONOTONIC) < until) {
        if (!FSM_LOAD(&team->open) || FSM_LOAD(&team->next) >= FSM_LOAD(&team->end)) {
            fsm_pause();
            continue;
        }
        const int others = FSM_ADD(&team->helpers, 1);
        if (FSM_LOAD(&team->open) && others < team->limit) {
            if (team->scratch_size > scratch_size)
                needed = team->scratch_size;
            else
                fsm_team_take(team, scratch);
            until = fsm_nanoseconds(CLOCK_MONOTONIC) + patience;
        }
        FSM_ADD(&team->helpers, -1);
    }
    FSM_ADD(&team->waiting, -1);
    return needed;
}

/* How many ns the leader alone would have worked on the batches since this was asked last: with a CPU of
 * its own, by the share of the rows that it took. For the thread that leads. */
static int64_t fsm_team_alone(fsm_team *team)
{
    const int64_t alone = team->alone;
    team->alone = 0;
    return alone;
}

/* How many threads are in fsm_team_help. */
static int fsm_team_waiting(fsm_team *team) { return FSM_LOAD(&team->waiting); }

/* Lets those threads return, whatever patience they have. */
static void fsm_team_dismiss(fsm_team *team) { FSM_ADD(&team->dismissals, 1); }

#else /* without those operations nobody waits and nobody helps */

static int fsm_team_supported(void) { return 0; }

static fastsoftmax_status fsm_team_lead(fsm_team *team, fsm_row_function function,
                                        const fastsoftmax_batch *batch, int64_t begin, int64_t end,
                                        int64_t step, int64_t limit, size_t scratch_size,
                                        void *scratch)
{
    (void)team, (void)step, (void)limit, (void)scratch_size;
    return function(batch, begin, end, scratch);
}

static size_t fsm_team_help(fsm_team *team, void *scratch, size_t scratch_size, int64_t patience)
{
    (void)team, (void)scratch, (void)scratch_size, (void)patience;
    return 0;
}

static int fsm_team_waiting(fsm_team *team)
{
    (void)team;
    return 0;
}

static int64_t fsm_team_alone(fsm_team *team)
{
    (void)team;
    return 0;
}

static void fsm_team_dismiss(fsm_team *team) { (void)team; }
#endif

/* As fastsoftmax_contiguous for the operation of a function, by a team. The caller has seen to it that
 * the memory does not overlap; too little scratch memory is FASTSOFTMAX_BAD_SHAPE. */
static fastsoftmax_status fsm_team_contiguous(fsm_team *team, int64_t step, int64_t limit,
                                              fsm_row_function function, int writes_rows,
                                              fastsoftmax_isa isa, fastsoftmax_dtype dtype,
                                              int64_t rows, int64_t cols, const void *x,
                                              double temperature, void *out, void *scratch,
                                              size_t scratch_size)
{
    const fastsoftmax_axis axes[2] = {{rows, cols, writes_rows ? cols : 1, 0, 0},
                                      {cols, 1, 1, 0, 0}};
    fastsoftmax_batch batch = {isa, dtype, dtype, 1, 1, axes, x, NULL, &temperature, out, NULL, 0,
                               NULL};
    const size_t needed = fastsoftmax_scratch_size(&batch);
    if (needed > scratch_size)
        return FASTSOFTMAX_BAD_SHAPE;
    return fsm_team_lead(team, function, &batch, 0, rows, step, limit, needed, scratch);
}
