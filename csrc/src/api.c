/* The public functions: check, then call the kernel of the batch's instruction set and type. */
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

static fastsoftmax_status check(const fastsoftmax_batch *batch, int64_t begin, int64_t end,
                                int zero_temperature)
{
    if (batch->dtype != FASTSOFTMAX_F32 && batch->dtype != FASTSOFTMAX_F64)
        return FASTSOFTMAX_BAD_DTYPE;
    if (batch->rows < 0 || batch->cols < 0 || begin < 0 || end < begin || end > batch->rows)
        return FASTSOFTMAX_BAD_SHAPE;
    const int64_t last = batch->temperature_stride == 0 && begin < end ? begin + 1 : end;
    for (int64_t r = begin; r < last; ++r) {
        const double t = batch->temperature[r * batch->temperature_stride];
        if (!(t > 0.0 || (t == 0.0 && zero_temperature)))
            return FASTSOFTMAX_BAD_TEMPERATURE;
    }
    return FASTSOFTMAX_OK;
}

#define FSM_OP(name, zero)                                                                        \
    fastsoftmax_status fastsoftmax_##name(const fastsoftmax_batch *batch, int64_t row_begin,      \
                                          int64_t row_end)                                        \
    {                                                                                             \
        const fsm_kernel_table *table = find_table(batch->isa);                                   \
        if (!table)                                                                               \
            return FASTSOFTMAX_BAD_ISA;                                                           \
        const fastsoftmax_status status =                                                         \
            check(batch, row_begin, row_end, zero);                                               \
        if (status == FASTSOFTMAX_OK)                                                             \
            table->name[batch->dtype](batch, row_begin, row_end);                                 \
        return status;                                                                            \
    }
#include "ops.def"
#undef FSM_OP

const char *fastsoftmax_version(void)
{
    return FSM_STR(FASTSOFTMAX_VERSION_MAJOR) "." FSM_STR(FASTSOFTMAX_VERSION_MINOR) "." FSM_STR(
        FASTSOFTMAX_VERSION_PATCH);
}
