/* What the parts of the library share; not installed. */
#ifndef FSM_INTERNAL_H
#define FSM_INTERNAL_H

#include <float.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "fastsoftmax.h"

#if defined(_MSC_VER)
#  define FSM_INLINE static __forceinline
#  define FSM_UNROLL
#else
#  define FSM_INLINE static inline __attribute__((always_inline, unused))
#  define FSM_UNROLL _Pragma("GCC unroll 16")
#endif

#if defined(__x86_64__) || defined(_M_X64)
#  define FSM_X86 1
#elif defined(__aarch64__) || defined(_M_ARM64)
#  define FSM_ARM64 1
#endif

/* Between these two, functions may use the named instructions: no compiler flag is needed, and one
 * binary holds the kernels of every instruction set. MSVC takes intrinsics as they are. */
#define FSM_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#  define FSM_TARGET_BEGIN(names)                                                                 \
      FSM_PRAGMA(clang attribute push(__attribute__((target(names))), apply_to = function))
#  define FSM_TARGET_END _Pragma("clang attribute pop")
#elif defined(__GNUC__)
#  define FSM_TARGET_BEGIN(names) _Pragma("GCC push_options") FSM_PRAGMA(GCC target(names))
#  define FSM_TARGET_END _Pragma("GCC pop_options")
#else
#  define FSM_TARGET_BEGIN(names)
#  define FSM_TARGET_END
#endif

#define FSM_CAT_(a, b) a##b
#define FSM_CAT(a, b) FSM_CAT_(a, b)

/* A kernel treats the rows [begin, end) of a batch that has been checked. */
typedef void fsm_kernel(const fastsoftmax_batch *batch, int64_t begin, int64_t end);

/* The kernels of one instruction set, by dtype. */
typedef struct fsm_kernel_table {
#define FSM_OP(name, zero) fsm_kernel *name[2];
#include "ops.def"
#undef FSM_OP
} fsm_kernel_table;

extern const fsm_kernel_table fsm_table_scalar;
#if defined(FSM_X86)
extern const fsm_kernel_table fsm_table_avx2;
extern const fsm_kernel_table fsm_table_avx512;
#elif defined(FSM_ARM64)
extern const fsm_kernel_table fsm_table_neon;
#endif

#endif
