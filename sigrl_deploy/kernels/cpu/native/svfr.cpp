#include "svfr.h"

#include <algorithm>
#include <cmath>

namespace sigrl {
namespace {

constexpr int DEPTH = 512;  // of a panel that is multiplied at once between the stages
// The labels of stage 2 are split into parts with a sum each, the same for any number of threads: the sums are added in order,
// so that results do not depend on which thread was faster. Their memory is bounded, however many labels there are.
constexpr size_t MOST_PARTS = 64, LEAST_PARTS = 4, SUMS_BYTES = 16 << 20;

int parts_of(int labels, size_t sum_bytes) {
    const size_t most = std::clamp(SUMS_BYTES / std::max<size_t>(sum_bytes, 1), LEAST_PARTS, MOST_PARTS);
    return int(std::min((size_t(labels) + LABELS_AT_ONCE - 1) / LABELS_AT_ONCE, most));
}

// rows [count, dim] with zeros up to `padded` columns
Buffer<float> widened(const float* rows, size_t count, size_t dim, size_t padded) {
    Buffer<float> wide(count * padded);
    for (size_t row = 0; row < count; row++) {
        std::copy_n(rows + row * dim, dim, wide + row * padded);
        std::fill_n(wide + row * padded + dim, padded - dim, 0.f);
    }
    return wide;
}

bool has_nan(const float* values, size_t count) {
    unsigned found = 0;
    for (size_t i = 0; i < count; i++) found |= values[i] != values[i];
    return found != 0;
}

}  // namespace

struct Svfr::Workspace {
    Picture picture;
    // T, V [C, padded]; the picture's own [P, padded]. Where nothing is padded, T and X are the caller's.
    Buffer<float> wide_labels, wide_projection, wide_patches, panels, largest;
    Buffer<int16_t> fixed;
    const float *labels, *projection;
    Buffer<float> semantic, relation, product, fused;  // S, R, one of S R and R Waᵀ, and V
    Buffer<float> sums;                                // [parts][padded / channels][P][channels]
    int parts;
    // By thread
    std::vector<Buffer<char>> operands;
    std::vector<Buffer<float>> tiles, right;

    Workspace(const Svfr& svfr, int count, const Vocabulary& vocabulary) {
        const size_t dim = size_t(svfr.dim_), padded = size_t(svfr.padded_), patches = size_t(count), c = size_t(vocabulary.labels);
        const Kernels& kernels = svfr.kernels_;
        picture.patches = count;
        picture.dim = svfr.padded_;
        labels = vocabulary.label_embedding;
        projection = vocabulary.graph_projection;
        if (dim != padded) {
            wide_labels = widened(labels, c, dim, padded);
            wide_projection = widened(projection, c, dim, padded);
            labels = wide_labels;
            projection = wide_projection;
        }
        panels = Buffer<float>(patches * padded);
        if (kernels.fixed_point && svfr.precision_ == INT8) {
            fixed = Buffer<int16_t>(patches * padded);
            largest = Buffer<float>(padded);
        }
        semantic = Buffer<float>(c * padded);
        relation = Buffer<float>(padded * padded);
        product = Buffer<float>(std::min(c, padded) * padded);
        fused = Buffer<float>(c * padded);
        parts = parts_of(vocabulary.labels, patches * padded * sizeof(float));
        sums = Buffer<float>(size_t(parts) * patches * padded);
        const size_t rows = LABELS_AT_ONCE * tile_rows(kernels, count);
        for (int thread = 0; thread < svfr.threads_.count(); thread++) {
            operands.emplace_back(rows * row_bytes(svfr.precision_, svfr.padded_));
            tiles.emplace_back(rows * size_t(kernels.channels));
            right.emplace_back(size_t(DEPTH) * size_t(kernels.channels));
        }
    }
};

Svfr::Svfr(
    const float* decouple, const float* fuse, const float* reconstruct, int dim, const Kernels& kernels, Precision precision,
    int largest_weight, int threads)
    : dim_(dim),
      padded_(int(round_up(size_t(dim), BLOCK))),
      kernels_(kernels),
      precision_(precision),
      decouple_(decouple, dim, kernels, precision, largest_weight),
      reconstruct_(reconstruct, dim, kernels, precision, largest_weight),
      fuse_(size_t(padded_) * size_t(padded_)),
      threads_(threads) {
    std::fill_n(fuse_.get(), size_t(padded_) * size_t(padded_), 0.f);
    for (int row = 0; row < dim; row++) std::copy_n(fuse + size_t(row) * dim, dim, fuse_ + size_t(row) * padded_);
}

void Svfr::run(const float* patches, int count, const Vocabulary& vocabulary, float* local) {
    const size_t size = size_t(count) * size_t(dim_), rows = size_t(vocabulary.labels) * size_t(padded_);
    if (size == 0 || vocabulary.labels == 0) return void(std::fill_n(local, size, 0.f));
    Workspace space(*this, count, vocabulary);
    lay_out(patches, space);
    decouple(vocabulary, space);
    between(vocabulary, space);
    reconstruct(vocabulary, space);
    add_up(space, local);
    // In 8 bits NaN would become a number.
    if (has_nan(patches, size) || has_nan(space.semantic, rows) || has_nan(space.fused, rows)) std::fill_n(local, size, NAN);
}

void Svfr::lay_out(const float* patches, Workspace& space) {
    const size_t count = size_t(space.picture.patches), width = size_t(kernels_.channels), padded = size_t(padded_);
    if (dim_ != padded_) {
        space.wide_patches = widened(patches, count, size_t(dim_), padded);
        patches = space.wide_patches;
    }
    threads_.each(padded_ / BLOCK, [&](int block, int) {
        const size_t first = size_t(block) * BLOCK;
        for (size_t channel = first; channel < first + BLOCK; channel += width)
            for (size_t p = 0; p < count; p++)
                std::copy_n(patches + p * padded + channel, width, space.panels + channel * count + p * width);
        if (space.fixed == nullptr) return;
        float* largest = space.largest + first;
        std::fill_n(largest, BLOCK, 1e-20f);
        for (size_t p = 0; p < count; p++)
            for (size_t i = 0; i < BLOCK; i++) largest[i] = std::max(largest[i], std::fabs(patches[p * padded + first + i]));
        int16_t* fixed = space.fixed + first * count;
        for (size_t p = 0; p < count; p++)
            for (size_t i = 0; i < BLOCK; i++)
                fixed[p * BLOCK + i] = int16_t(std::lrint(patches[p * padded + first + i] / largest[i] * 32767.f));
    });
    space.picture.rows = patches;
    space.picture.panels = space.panels;
    space.picture.fixed = space.fixed;
    space.picture.largest = space.largest;
}

void Svfr::decouple(const Vocabulary& vocabulary, Workspace& space) {
    threads_.each(vocabulary.labels, [&](int label, int thread) {
        const size_t row = size_t(label) * size_t(padded_);
        char* operand = space.operands[size_t(thread)];
        kernels_.operand(space.picture, space.labels + row, precision_, operand);
        float* tile = space.tiles[size_t(thread)];
        kernels_.decouple(decouple_.view(), space.picture, precision_, operand, tile, space.semantic + row);
    });
}

void Svfr::between(const Vocabulary& vocabulary, Workspace& space) {
    const int labels = vocabulary.labels;
    const size_t padded = size_t(padded_);
    const auto rows_of = [&](const float* data, int rows) { return Matrix{data, padded, 1, rows, padded_}; };
    multiply({space.semantic, 1, padded, padded_, labels}, space.labels, nullptr, space.relation, space);
    unit_rows(space);
    if (labels < padded_) {  // S R Waᵀ from whichever end is cheaper (identity 6)
        multiply(rows_of(space.semantic, labels), space.relation, nullptr, space.product, space);
        multiply(rows_of(space.product, labels), fuse_, space.projection, space.fused, space);
    } else {
        multiply(rows_of(space.relation, padded_), fuse_, nullptr, space.product, space);
        multiply(rows_of(space.semantic, labels), space.product, space.projection, space.fused, space);
    }
}

// relu, then rows of unit norm; a zero row stays zero, and NaN stays NaN
void Svfr::unit_rows(Workspace& space) {
    threads_.each(padded_ / BLOCK, [&](int block, int) {
        for (int i = block * BLOCK; i < (block + 1) * BLOCK; i++) {
            float* row = space.relation + size_t(i) * size_t(padded_);
            double squares = 0;
            for (int j = 0; j < padded_; j++) {
                row[j] = row[j] < 0 ? 0 : row[j];
                squares += double(row[j]) * row[j];
            }
            const double factor = squares == 0 ? 1 : 1 / std::sqrt(squares);
            for (int j = 0; j < padded_; j++) row[j] = float(row[j] * factor);
        }
    });
}

void Svfr::multiply(const Matrix& left, const float* right, const float* add, float* out, Workspace& space) {
    const int width = kernels_.channels;
    const size_t padded = size_t(padded_);
    threads_.each(padded_ / width, [&](int index, int thread) {
        const size_t column = size_t(index) * size_t(width);
        float* panel = space.right[size_t(thread)];
        for (int first = 0; first < left.depth; first += DEPTH) {
            const int depth = std::min(DEPTH, left.depth - first);
            for (int k = 0; k < depth; k++)
                std::copy_n(right + size_t(first + k) * padded + column, width, panel + size_t(k) * size_t(width));
            const float* before = first > 0 ? out : add;
            kernels_.product(Product{
                left.data + size_t(first) * left.step, left.row, left.step, panel, left.rows, depth,
                before == nullptr ? nullptr : before + column, padded, out + column, padded});
        }
    });
}

void Svfr::reconstruct(const Vocabulary& vocabulary, Workspace& space) {
    const size_t padded = size_t(padded_), rows = tile_rows(kernels_, space.picture.patches);
    const size_t sum_size = size_t(space.picture.patches) * padded;
    threads_.each(space.parts, [&](int part, int thread) {
        float* sum = space.sums + size_t(part) * sum_size;
        std::fill_n(sum, sum_size, 0.f);
        char* operands = space.operands[size_t(thread)];
        const int end = int(int64_t(vocabulary.labels) * (part + 1) / space.parts);
        for (int first = int(int64_t(vocabulary.labels) * part / space.parts); first < end; first += LABELS_AT_ONCE) {
            const int labels = std::min(LABELS_AT_ONCE, end - first);
            for (int i = 0; i < labels; i++) {
                const float* row = space.fused + size_t(first + i) * padded;
                kernels_.operand(space.picture, row, precision_, operands + size_t(i) * rows * row_bytes(precision_, padded_));
            }
            float* tiles = space.tiles[size_t(thread)];
            kernels_.reconstruct(reconstruct_.view(), space.picture, precision_, operands, labels, tiles, sum);
        }
    });
}

void Svfr::add_up(const Workspace& space, float* local) {
    const size_t count = size_t(space.picture.patches), padded = size_t(padded_), width = size_t(kernels_.channels);
    threads_.each(padded_ / kernels_.channels, [&](int index, int) {
        const size_t channel = size_t(index) * width, panel = channel * count;
        const size_t used = std::min(width, size_t(dim_) - std::min(size_t(dim_), channel));
        float* total = space.sums + panel;  // of the first part, to which the others are added in order
        for (int part = 1; part < space.parts; part++) {
            const float* sum = total + size_t(part) * count * padded;
            for (size_t i = 0; i < count * width; i++) total[i] += sum[i];
        }
        for (size_t p = 0; p < count; p++) {
            const float* x = space.panels + panel + p * width;
            for (size_t i = 0; i < used; i++) local[p * size_t(dim_) + channel + i] = x[i] * total[p * width + i];
        }
    });
}

}  // namespace sigrl
