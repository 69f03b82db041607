#include "packing.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>

namespace sigrl {
namespace {

// exp(E) leaves fp32 room for a sum over any number of patches, and exp(-E) is a normal number (docs/method.md, identity 5).
constexpr double LARGEST_ENERGY = 64;

uint16_t to_bf16(float value) {  // rounded to nearest even
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

}  // namespace

PackedWeights::PackedWeights(const float* transposed, int dim, const Kernels& kernels, Precision precision, int largest)
    : channels_(kernels.channels), int8_group_(kernels.int8_group) {
    const size_t padded = round_up(size_t(dim), BLOCK), bytes = padded * padded * size_t(bytes_of(precision));
    panels_ = Buffer<char>(bytes);
    scale_ = Buffer<float>(padded);
    start_ = Buffer<int32_t>(padded);
    std::memset(panels_, 0, bytes);
    std::fill_n(scale_.get(), padded, 1.f);
    std::fill_n(start_.get(), padded, 0);
    view_.dim = int(padded);
    view_.panels = panels_;
    view_.scale = scale_;
    view_.start = start_;
    for (int channel = 0; channel < dim; channel++) pack_channel(transposed, channel, dim, precision, largest);
}

char* PackedWeights::place(int channel, int k, Precision precision) const {
    const size_t size = size_t(bytes_of(precision)), width = size_t(channels_);
    const size_t group = precision == INT8 ? size_t(int8_group_) : 4, per = group / size;
    const size_t panel = size_t(channel) / width * (size_t(view_.dim) / per) * width;
    return panels_ + (panel + size_t(k) / per * width + size_t(channel) % width) * group + size_t(k) % per * size;
}

void PackedWeights::pack_channel(const float* transposed, int channel, int dim, Precision precision, int largest) {
    double norm = 0, rounded_norm = 0;
    float most = 0;
    for (int k = 0; k < dim; k++) {
        const float weight = std::fabs(transposed[size_t(k) * dim + channel]);
        norm += weight;
        most = std::max(most, weight);
    }
    const float step = std::max(most / float(largest), 1e-30f);
    int sum = 0;
    for (int k = 0; k < dim; k++) {
        const float weight = transposed[size_t(k) * dim + channel];
        char* at = place(channel, k, precision);
        if (precision == INT8) {
            const float steps = std::clamp(weight / step, float(-largest), float(largest));
            const int rounded = std::isnan(steps) ? 0 : int(std::lrint(steps));
            *reinterpret_cast<int8_t*>(at) = int8_t(rounded);
            sum += rounded;
            rounded_norm += double(step) * std::abs(rounded);
        } else if (precision == BF16) {
            const uint16_t rounded = to_bf16(weight * LOG2_E);
            std::memcpy(at, &rounded, 2);
        } else {
            const float scaled = weight * LOG2_E;
            std::memcpy(at, &scaled, 4);
        }
    }
    view_.shift = view_.shift || !(std::max(norm, rounded_norm) <= LARGEST_ENERGY);
    if (precision == INT8) {
        scale_[channel] = std::isfinite(norm) ? step / 127 * LOG2_E : NAN;  // which 8 bits cannot hold
        start_[channel] = -128 * sum;
    }
}

}  // namespace sigrl
