// The table of instruction sets, each with the kernels that were compiled for it.
#include "isas.h"

#include "../_kernels.h"

namespace edm {

#define EDM_DECLARE(NAME, ...)    \
    namespace NAME {              \
    extern const Kernels kernels; \
    }
EDM_ISAS(EDM_DECLARE)

namespace {

struct Entry {
    Isa isa;
    const Kernels* kernels;
};

#define EDM_ENTRY(NAME, TARGET, AVAILABLE, ...) {{#NAME, AVAILABLE, __VA_ARGS__}, &NAME::kernels},
#define EDM_ONE(...) +1
constexpr int kCount = 0 EDM_ISAS(EDM_ONE);

const Entry& entry(int isa) {
    static const Entry entries[kCount] = {EDM_ISAS(EDM_ENTRY)};
    return entries[isa];
}

}  // namespace

int isa_count() { return kCount; }

const Isa& isa_at(int isa) { return entry(isa).isa; }

bool available(int isa) { return isa >= 0 && isa < kCount && entry(isa).isa.available; }

int best_isa() {
    int best = kCount - 1;
    while (!available(best)) --best;  // the first is available everywhere
    return best;
}

const Kernels& kernels_of(int isa) { return *entry(isa).kernels; }

}  // namespace edm
