// The weights of one stage in the order in which a kernel reads them.
#pragma once
#include "buffer.h"
#include "kernels.h"

namespace sigrl {

class PackedWeights {
public:
    // `transposed` is Wᵀ [dim, dim], row k the weights of input channel k. `largest` is the largest weight in 8 bits.
    // Throws std::bad_alloc.
    PackedWeights(const float* transposed, int dim, const Kernels& kernels, Precision precision, int largest);

    const Weights& view() const { return view_; }

private:
    void pack_channel(const float* transposed, int channel, int dim, Precision precision, int largest);
    char* place(int channel, int k, Precision precision) const;  // of W[channel, k]

    int channels_, int8_group_;  // as in Kernels
    Buffer<char> panels_;
    Buffer<float> scale_;
    Buffer<int32_t> start_;
    Weights view_;
};

}  // namespace sigrl
