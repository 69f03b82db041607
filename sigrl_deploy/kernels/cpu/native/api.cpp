// The functions that Python calls (sigrl_deploy/kernels/cpu/library.py). Sizes are checked there. No exception may leave them.
#include "instruction_sets.h"
#include "svfr.h"

#define EXPORTED extern "C" __attribute__((visibility("default")))

using sigrl::InstructionSet;
using sigrl::Kernels;
using sigrl::Precision;
using sigrl::Svfr;

// Goes up by one with each change of these functions, here and in library.py.
EXPORTED int sigrl_interface() { return 1; }

// Whether the CPU, its operating system and this build have an instruction set.
EXPORTED int sigrl_has(int set) { return sigrl::kernels_of(InstructionSet(set)) != nullptr; }

// Whether an instruction set that is there has products in bf16.
EXPORTED int sigrl_has_bf16(int set) { return sigrl::kernels_of(InstructionSet(set))->bf16; }

// The largest weight in 8 bits of an instruction set that is there.
EXPORTED int sigrl_largest_weight(int set) { return sigrl::kernels_of(InstructionSet(set))->largest_weight; }

// W1ᵀ, Waᵀ and W2ᵀ [dim, dim] for an instruction set that is there. Null where there is no memory, no thread, or no permission
// to use tiles.
EXPORTED Svfr* sigrl_svfr_open(
    const float* decouple, const float* fuse, const float* reconstruct, int dim, int set, int precision, int largest_weight,
    int threads) {
    try {
        const Kernels* kernels = sigrl::kernels_of(InstructionSet(set));
        if (kernels == nullptr || !sigrl::permitted(InstructionSet(set))) return nullptr;
        return new Svfr(decouple, fuse, reconstruct, dim, *kernels, Precision(precision), largest_weight, threads);
    } catch (...) {
        return nullptr;
    }
}

// Only in the process that opened it, whose threads it ends.
EXPORTED void sigrl_svfr_close(Svfr* svfr) { delete svfr; }

// patches X [batch, P, D], T and G Wbᵀ [C, D] → local features Y [batch, P, D]. Returns 0 where there is no memory.
EXPORTED int sigrl_svfr_run(
    Svfr* svfr, const float* patches, int batch, int count, int dim, const float* label_embedding,
    const float* graph_projection, int labels, float* local) {
    try {
        const size_t size = size_t(count) * size_t(dim);
        const sigrl::Vocabulary vocabulary{labels, label_embedding, graph_projection};
        for (int i = 0; i < batch; i++) svfr->run(patches + size_t(i) * size, count, vocabulary, local + size_t(i) * size);
        return 1;
    } catch (...) {
        return 0;
    }
}
