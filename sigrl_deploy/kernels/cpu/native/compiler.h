// What differs between compilers. One object holds the kernels of every instruction set, each compiled for its own: what lies
// between TARGET_BEGIN and TARGET_END must stay out of reach of other files, or the linker might take it for theirs.
#pragma once

#define INLINE inline __attribute__((always_inline))
#define NOINLINE __attribute__((noinline))
#define SIGRL_PRAGMA(text) _Pragma(#text)

#if defined(SIGRL_EMULATED)  // tests, which compile everything for AVX2 and emulate the rest
#define TARGET_BEGIN(sets)
#define TARGET_END
#elif defined(__clang__)
#define TARGET_BEGIN(sets) SIGRL_PRAGMA(clang attribute push(__attribute__((target(sets))), apply_to = function))
#define TARGET_END SIGRL_PRAGMA(clang attribute pop)
#else
#define TARGET_BEGIN(sets) SIGRL_PRAGMA(GCC target(sets))
#define TARGET_END  // to the end of the file: templates are compiled there
#endif

#if defined(__clang__)
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif
