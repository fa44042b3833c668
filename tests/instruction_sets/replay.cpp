// Replays recorded calls of the CPU kernels on one instruction set and compares what they write: replay RECORD ISA.
// RECORD.txt has one word or number after another (tests/helpers/recorded.py writes it), RECORD.bin the contents of the
// buffers:
//     case NAME                                  its buffers are those that follow
//     buffer BYTES OFFSET                        contents before the calls, or "nan"
//     call FUNCTION COUNT {NAME p BUFFER | NAME n NUMBER}...      lists: a name for each of their values
//     expect BUFFER BYTES ITEMSIZE OFFSET TOLERANCE    contents after them; 0: to the bit
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "../../csrc/cpu/_kernels.h"
#include "../../csrc/cpu/simd/isas.h"
#include "../helpers/filled.h"

using namespace edm;

namespace {

constexpr int kThreads = 2;

struct Buffer {
    std::vector<double> memory;  // aligned
    char* data() { return reinterpret_cast<char*>(memory.data()); }
};

int run(const std::string& name, const NamedValues& values, int isa) {
    for (const Function& function : functions_of(isa))
        if (name == function.name) return function.run(filled(function, values).data(), kThreads);
    return -1;
}

// how far the worst element lies from what is expected; 0 where the bits are the same
template <class T>
double distance(const T* found, const T* expected, size_t count) {
    double worst = 0;
    for (size_t i = 0; i < count; ++i) {
        if (std::memcmp(found + i, expected + i, sizeof(T)) == 0) continue;
        if (found[i] != found[i] && expected[i] != expected[i]) continue;  // two NaN
        const double error = std::fabs(double(found[i]) - double(expected[i]));
        if (!(error <= worst)) worst = error > 0 ? error : HUGE_VAL;  // NaN, or zeros of two signs
    }
    return worst;
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 3) return std::printf("usage: replay RECORD ISA\n"), 2;
    int isa = 0;
    while (isa < isa_count() && std::string(isa_at(isa).name) != argv[2]) ++isa;
    if (!available(isa)) return std::printf("no instruction set %s\n", argv[2]), 2;
    std::ifstream text(argv[1] + std::string(".txt")), raw(argv[1] + std::string(".bin"), std::ios::binary);
    const std::vector<char> contents((std::istreambuf_iterator<char>(raw)), {});
    std::vector<Buffer> buffers;
    std::string word, name, function, number;
    long cases = 0, compared = 0, wrong = 0;
    while (text >> word) {
        size_t bytes, offset, item;
        int64_t id;
        if (word == "case") {
            text >> name, buffers.clear(), ++cases;
        } else if (word == "buffer") {
            text >> bytes >> word;
            buffers.push_back({std::vector<double>(bytes / sizeof(double) + 1)});
            if (word == "nan") std::memset(buffers.back().data(), 0xff, bytes);
            else std::memcpy(buffers.back().data(), contents.data() + std::stoul(word), bytes);
        } else if (word == "call") {
            NamedValues values;
            int count;
            text >> function >> count;
            for (std::string field, kind; count-- && text >> field >> kind >> number;) {
                const double value = std::strtod(number.c_str(), nullptr);
                values.emplace_back(field, value_of(value, kind == "p" ? buffers.at(size_t(value)).data() : nullptr));
            }
            if (const int status = run(function, values, isa)) {
                std::printf("%s: %s returned %d\n", name.c_str(), function.c_str(), status), ++wrong;
            }
        } else if (word == "expect") {
            text >> id >> bytes >> item >> offset >> number;
            const double tolerance = std::strtod(number.c_str(), nullptr);
            char *found = buffers.at(size_t(id)).data(), *expected = const_cast<char*>(contents.data()) + offset;
            std::vector<double> aligned(bytes / sizeof(double) + 1);
            std::memcpy(aligned.data(), expected, bytes), expected = reinterpret_cast<char*>(aligned.data());
            const double error = item == 4 ? distance((float*)found, (float*)expected, bytes / 4)
                                           : distance((double*)found, (double*)expected, bytes / 8);
            ++compared;
            if (!(error <= tolerance)) {
                ++wrong;
                std::printf("%s: %s: buffer %ld is off by %g; expected at most %g\n", name.c_str(), function.c_str(),
                            long(id), error, tolerance);
            }
        } else {
            return std::printf("%s: what is %s?\n", name.c_str(), word.c_str()), 2;
        }
    }
    std::printf("%ld cases, %ld results, %ld wrong\n", cases, compared, wrong);
    return cases == 0 || wrong;
}
