#include "dispatch.h"

#include <atomic>
#include <cstring>

namespace rnnkern {

// One row an instruction set: a file compiled with its flags exports its table under its name.
#define RNNKERN_SET(name)     \
  namespace name {            \
  extern const Kernels table; \
  }
RNNKERN_SETS
#undef RNNKERN_SET

const Kernels* const kKernels[] = {
#define RNNKERN_SET(name) &name::table,
    RNNKERN_SETS
#undef RNNKERN_SET
};
const int kKernelsCount = static_cast<int>(sizeof(kKernels) / sizeof(kKernels[0]));

Bf16Sums bf16_sums = Bf16Sums::fastest;

namespace {
std::atomic<const Kernels*> chosen{nullptr};
}

const Kernels& kernels() {
  const Kernels* in_use = chosen.load(std::memory_order_acquire);
  if (in_use) return *in_use;
  in_use = kKernels[0];  // the plain machine's runs everywhere
  for (const Kernels* set : kKernels)
    if (set->runs_here()) in_use = set;
  chosen.store(in_use, std::memory_order_release);
  return *in_use;
}

void use_kernels(const Kernels& wanted) { chosen.store(&wanted, std::memory_order_release); }

const Kernels* find_kernels(const char* name) {
  for (const Kernels* set : kKernels)
    if (std::strcmp(set->name, name) == 0) return set;
  return nullptr;
}

}  // namespace rnnkern
