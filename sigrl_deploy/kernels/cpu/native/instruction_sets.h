// Which kernels this CPU and this build have.
#pragma once
#include "kernels.h"

namespace sigrl {

// The kernels of one instruction set, or null where the CPU, its operating system or this build has none.
const Kernels* kernels_of(InstructionSet set);

// Asks the operating system for leave to use an instruction set that is there; true where it is given, or none is needed.
bool permitted(InstructionSet set);

}  // namespace sigrl
