// Replays recorded calls of the CPU kernels on one instruction set and compares what they write: replay RECORD ISA.
// RECORD.txt has one word or number after another (tests/helpers/recorded.py writes it), RECORD.bin the contents of the
// buffers:
//     case NAME                                  its buffers are those that follow
//     buffer BYTES OFFSET                        contents before the calls, or "nan"
//     call FUNCTION COUNT {NAME p BUFFER | NAME n NUMBER}...      p -1: null
//     expect BUFFER BYTES ITEMSIZE OFFSET TOLERANCE    contents after them; 0: to the bit
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <string>
#include <vector>

#include "../../csrc/attention.h"
#include "../../csrc/conv2d.h"
#include "../../csrc/cpu/simd/isas.h"
#include "../../csrc/group_norm_silu.h"
#include "../../csrc/solver_update.h"
#include "../../csrc/upfirdn.h"

using namespace edm;

namespace {

constexpr int kThreads = 2;

struct Buffer {
    std::vector<double> memory;  // aligned
    char* data() { return reinterpret_cast<char*>(memory.data()); }
};

// arguments by name; a name that was not recorded ends the program
struct Call {
    std::map<std::string, void*> pointers;
    std::map<std::string, double> numbers;
    void* p(const std::string& name) const { return pointers.at(name); }
    double d(const std::string& name) const { return numbers.at(name); }
    int64_t i(const std::string& name) const { return int64_t(d(name)); }
};

int attention(const Call& c, int isa, bool backward) {
    Attention s{};
    s.qkv_ptr = c.p("qkv"), s.a_ptr = c.p("a"), s.stats_ptr = c.p("stats"), s.da_ptr = c.p("da");
    s.dqkv_ptr = c.p("dqkv"), s.n = c.i("n"), s.heads = c.i("heads"), s.channels = c.i("channels");
    s.pixels = c.i("pixels");
    s.qkv = {c.i("qkv_image"), c.i("qkv_head"), c.i("qkv_which"), c.i("qkv_channel"), c.i("qkv_pixel")};
    s.a = {c.i("a_image"), c.i("a_head"), c.i("a_channel"), c.i("a_pixel")};
    return backward ? attention_bwd_cpu(s, isa, kThreads) : attention_fwd_cpu(s, isa, kThreads);
}

int conv2d(const Call& c, int isa) {
    Conv2d s{};
    s.algorithm = int(c.i("algorithm")), s.y_ptr = c.p("y"), s.x_ptr = c.p("x"), s.weight_ptr = c.p("weight");
    s.bias_ptr = c.p("bias"), s.residual_ptr = c.p("residual"), s.workspace_ptr = c.p("workspace");
    s.affine_ptr = c.p("affine"), s.balance_ptr = c.p("balance");
    s.n = c.i("n"), s.h = c.i("h"), s.w = c.i("w"), s.in = c.i("in"), s.out = c.i("out"), s.kernel = c.i("kernel");
    s.padding = c.i("padding"), s.bias_rows = c.i("bias_rows"), s.y_pitch = c.i("y_pitch"), s.x_pitch = c.i("x_pitch");
    s.residual_pitch = c.i("residual_pitch"), s.scale = c.d("scale"), s.silu = c.i("silu");
    s.transposed = c.i("transposed");
    return conv2d_fwd_cpu(s, isa, kThreads);
}

int conv2d_pack(const Call& c, int isa) {
    Conv2dPack s{};
    s.algorithm = int(c.i("algorithm")), s.packed_ptr = c.p("packed"), s.weight_ptr = c.p("weight");
    s.out = c.i("out"), s.in = c.i("in"), s.kernel = c.i("kernel"), s.transposed = c.i("transposed");
    return conv2d_pack_cpu(s, isa, kThreads);
}

int conv2d_bwd(const Call& c, int isa) {
    Conv2dBwd s{};
    s.dweight_ptr = c.p("dweight"), s.x_ptr = c.p("x"), s.dy_ptr = c.p("dy"), s.workspace_ptr = c.p("workspace");
    s.n = c.i("n"), s.h = c.i("h"), s.w = c.i("w"), s.in = c.i("in"), s.out = c.i("out"), s.padding = c.i("padding");
    return conv2d_bwd_cpu(s, isa, kThreads);
}

int group_norm_silu(const Call& c, int isa, bool backward) {
    GroupNormSilu s{};
    s.dtype = int(c.i("dtype")), s.x_ptr = c.p("x"), s.stats_ptr = c.p("stats"), s.weight_ptr = c.p("weight");
    s.bias_ptr = c.p("bias"), s.scale_ptr = c.p("scale"), s.shift_ptr = c.p("shift");
    s.n = c.i("n"), s.c = c.i("c"), s.space = c.i("space"), s.groups = c.i("groups"), s.x_pitch = c.i("x_pitch");
    s.scale_rows = c.i("scale_rows"), s.shift_rows = c.i("shift_rows"), s.eps = c.d("eps"), s.silu = c.i("silu");
    s.channels_last = c.i("channels_last");
    if (backward) {
        s.dy_ptr = c.p("dy"), s.dx_ptr = c.p("dx"), s.dparams_ptr = c.p("dparams");
        return group_norm_silu_bwd_cpu(s, isa, kThreads);
    }
    s.y_ptr = c.p("y"), s.affine_ptr = c.p("affine");
    return group_norm_silu_fwd_cpu(s, isa, kThreads);
}

int solver_update(const Call& c, int isa) {
    SolverUpdate s{};
    s.dtype = int(c.i("dtype")), s.y_ptr = c.p("y"), s.d_ptr = c.p("d"), s.base_ptr = c.p("base"), s.x_ptr = c.p("x");
    s.D_ptr = c.p("D"), s.noise_ptr = c.p("noise"), s.size = c.i("size");
    for (; c.pointers.count("term" + std::to_string(s.num_terms)); ++s.num_terms) {
        s.terms_ptr[s.num_terms] = c.p("term" + std::to_string(s.num_terms));
        s.weights[s.num_terms] = c.d("weight" + std::to_string(s.num_terms));
    }
    s.p = c.d("p"), s.q = c.d("q"), s.t = c.d("t"), s.a = c.d("a"), s.h = c.d("h"), s.w = c.d("w"), s.c = c.d("c");
    return solver_update_fwd_cpu(s, isa, kThreads);
}

int upfirdn(const Call& c, int isa) {
    Upfirdn s{};
    s.dtype = int(c.i("dtype")), s.y_ptr = c.p("y"), s.x_ptr = c.p("x"), s.f_ptr = c.p("f");
    s.n = c.i("n"), s.c = c.i("c"), s.h = c.i("h"), s.w = c.i("w"), s.out_h = c.i("out_h"), s.out_w = c.i("out_w");
    s.taps = c.i("taps"), s.factor = c.i("factor"), s.padding = c.i("padding"), s.gain = c.d("gain"), s.up = c.i("up");
    s.channels_last = c.i("channels_last"), s.x_pitch = c.i("x_pitch");
    return upfirdn_fwd_cpu(s, isa, kThreads);
}

int run(const std::string& function, const Call& c, int isa) {
    if (function == "attention_fwd_cpu") return attention(c, isa, false);
    if (function == "attention_bwd_cpu") return attention(c, isa, true);
    if (function == "conv2d_fwd_cpu") return conv2d(c, isa);
    if (function == "conv2d_pack_cpu") return conv2d_pack(c, isa);
    if (function == "conv2d_bwd_cpu") return conv2d_bwd(c, isa);
    if (function == "group_norm_silu_fwd_cpu") return group_norm_silu(c, isa, false);
    if (function == "group_norm_silu_bwd_cpu") return group_norm_silu(c, isa, true);
    if (function == "solver_update_fwd_cpu") return solver_update(c, isa);
    if (function == "upfirdn_fwd_cpu") return upfirdn(c, isa);
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
            Call call;
            int count;
            text >> function >> count;
            for (std::string field, kind; count-- && text >> field >> kind;) {
                if (kind == "p") text >> id, call.pointers[field] = id < 0 ? nullptr : buffers.at(size_t(id)).data();
                else text >> number, call.numbers[field] = std::strtod(number.c_str(), nullptr);
            }
            if (const int status = run(function, call, isa)) {
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
