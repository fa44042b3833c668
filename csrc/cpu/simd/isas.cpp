// The table of instruction sets, each with the kernels that were compiled for it.
#include "isas.h"

#include "../_kernels.h"

namespace edm {

#define EDM_DECLARE(NAME, ...)        \
    namespace NAME {                  \
    extern const Kernels kernels;     \
    extern const Functions functions; \
    }
EDM_ISAS(EDM_DECLARE)

namespace {

struct Entry {
    Isa isa;
    const Kernels* kernels;
    const Functions* functions;
};

#define EDM_ENTRY(NAME, TARGET, AVAILABLE, ...) {{#NAME, AVAILABLE, __VA_ARGS__}, &NAME::kernels, &NAME::functions},

const Entry& entry(int isa) {
    static const Entry entries[kIsaCount] = {EDM_ISAS(EDM_ENTRY)};
    return entries[isa];
}

}  // namespace

int isa_count() { return kIsaCount; }

const Isa& isa_at(int isa) { return entry(isa).isa; }

bool available(int isa) { return isa >= 0 && isa < kIsaCount && entry(isa).isa.available; }

int best_isa() {
    int best = kIsaCount - 1;
    while (!available(best)) --best;  // the first is available everywhere
    return best;
}

const Kernels& kernels_of(int isa) { return *entry(isa).kernels; }

Functions functions_of(int isa) { return *entry(isa).functions; }

}  // namespace edm
