// SVFR of whole pictures: both stages and what lies between them (docs/method.md, "Image side").
#pragma once
#include "packing.h"
#include "threads.h"

namespace sigrl {

struct Vocabulary {
    int labels;                     // C
    const float* label_embedding;   // T [C, D]
    const float* graph_projection;  // G Wbᵀ [C, D]
};

class Svfr {
public:
    // W1ᵀ, Waᵀ and W2ᵀ [dim, dim]. Throws std::bad_alloc and std::system_error.
    Svfr(const float* decouple, const float* fuse, const float* reconstruct, int dim, const Kernels& kernels,
         Precision precision, int largest_weight, int threads);

    // patches X [P, D] of one picture → local features Y [P, D]. May be called from several threads. Throws std::bad_alloc.
    void run(const float* patches, int count, const Vocabulary& vocabulary, float* local);

private:
    struct Workspace;
    void lay_out(const float* patches, Workspace& space);
    void decouple(const Vocabulary& vocabulary, Workspace& space);
    void between(const Vocabulary& vocabulary, Workspace& space);
    void unit_rows(Workspace& space);
    void reconstruct(const Vocabulary& vocabulary, Workspace& space);
    void add_up(const Workspace& space, float* local);
    // out [M, D] = left by right [K, D] (+ add); left[m, k] lies at left + m · row + k · step
    struct Matrix {
        const float* data;
        size_t row, step;
        int rows, depth;
    };
    void multiply(const Matrix& left, const float* right, const float* add, float* out, Workspace& space);

    int dim_, padded_;
    const Kernels& kernels_;
    Precision precision_;
    PackedWeights decouple_, reconstruct_;
    Buffer<float> fuse_;  // Waᵀ [padded, padded]
    Threads threads_;
};

}  // namespace sigrl
