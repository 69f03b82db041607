// What instruction sets without tiles share. Included inside the namespace of an instruction set, after its `V`.

constexpr int CHANNELS = V::VECTORS * V::LANES;  // of a panel
constexpr int MULTIPLIED_ROWS = V::ROWS;
constexpr int BUFFER_ROWS = 1;
#include "exponential.h"
#include "operand.h"
#include "product.h"

template <Precision PRECISION>
INLINE void multiply(int rows, const Weights& weights, int channel, const char* operand, float* tile) {
    energies<PRECISION, V::ROWS>(rows, weights, channel, operand, tile);
}
#include "stages.h"
