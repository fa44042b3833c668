// Cuts a convolution into blocks of outputs (tiles of them for Winograd) times ranges of output channels, of which each
// thread takes some. How the work is cut never changes a sum, so neither the number of threads nor the batch does.
#include "_conv2d.h"

#include <vector>

#define EDM_BODY "_conv2d.inc"
#include "_foreach_isa.h"

namespace edm {
namespace {

constexpr int64_t kPanel = 32;
constexpr int64_t kMostInt16 = 4096;  // channels, see _int16.inc

int64_t panels(int64_t out) { return (out + kPanel - 1) / kPanel; }

// planes of a packed weight, of one phase: positions of the kernel, or products of a tile
int64_t planes(int algorithm, int64_t kernel) {
    if (algorithm == kDirect && (kernel == 1 || kernel == 3)) return kernel * kernel;
    if (kernel == 3 && algorithm == kWinograd2) return 16;
    if (kernel == 3 && (algorithm == kWinograd4 || algorithm == kWinograd4Int16)) return 36;
    if (kernel == 3 && doubles(algorithm)) return algorithm == kWinograd2Up ? 9 : 25;
    if (kernel == 1 && algorithm == kInt16) return 1;
    return -1;
}

int64_t phases(int algorithm) { return doubles(algorithm) ? 4 : 1; }

// floats of one plane of one panel
int64_t plane_floats(int algorithm, int64_t in) {
    return int16_products(algorithm) ? portable::int16_panel(in) : in * kPanel;
}

// floats of scratch for `block` tiles or pixels
int64_t scratch_floats(const Conv2d& s, int64_t block) {
    const int64_t pitch = row_pitch(s.in), q = portable::int16_pitch(s.in) / 2;
    if (s.algorithm == kDirect) return 16 * kPanel;
    if (s.algorithm == kInt16) return block * (kPanel + 1 + q);
    const int64_t count = planes(s.algorithm, s.kernel);
    if (int16_products(s.algorithm)) return count * (block * (kPanel + 1 + q) + pitch);
    return count * block * (pitch + kPanel + 1);
}

bool fits(const Conv2d& s, int isa) {
    return s.n >= 0 && s.h > 0 && s.w > 0 && s.in > 0 && s.out > 0 && s.padding >= 0 &&
           planes(s.algorithm, s.kernel) > 0 && s.h + 2 * s.padding >= s.kernel && s.w + 2 * s.padding >= s.kernel &&
           (s.bias_ptr ? s.bias_rows == 1 || s.bias_rows == s.n : s.bias_rows == 0) &&
           (s.algorithm != kInt16 || s.padding == 0) && (!doubles(s.algorithm) || s.padding == 1) &&
           (!int16_products(s.algorithm) || s.in <= kMostInt16) && s.x_pitch >= s.in && s.y_pitch >= s.out &&
           (!s.residual_ptr || s.residual_pitch >= s.out) && isa <= best_isa();
}

}  // namespace

int64_t conv2d_packed_size(int algorithm, int64_t out, int64_t in, int64_t kernel) {
    const int64_t count = planes(algorithm, kernel);
    return count < 0 ? -1 : panels(out) * phases(algorithm) * count * plane_floats(algorithm, in);
}

int conv2d_pack_cpu(const Conv2dPack& s, int isa, int threads) {
    const int64_t count = planes(s.algorithm, s.kernel);
    if (s.dtype != kFloat32) return kBadType;
    if (isa > best_isa() || (s.transposed && doubles(s.algorithm))) return kBadArgument;
    const int64_t out = s.transposed ? s.in : s.out, in = s.transposed ? s.out : s.in;
    if (count < 0 || out < 1 || in < 1 || (int16_products(s.algorithm) && in > kMostInt16)) return kBadArgument;
    parallel_for(panels(out) * phases(s.algorithm), 1, threads, [&](int64_t begin, int64_t end) {
        for (int64_t item = begin; item < end; ++item) {
            const Phase phase = Phase::of(item / panels(out));  // the first one is also that of no doubling
            EDM_DISPATCH(isa, pack_panel(s, phase, item % panels(out), count, out, in));
        }
    });
    return kOk;
}

int conv2d_fwd_cpu(const Conv2d& s, int isa, int threads) {
    if (s.dtype != kFloat32) return kBadType;
    if (!fits(s, isa)) return kBadArgument;
    if (s.n == 0) return kOk;
    const Cut cut(s);
    const bool tiled = tile_of(s.algorithm) > 1;
    const int64_t most = tiled ? kMostTiles : kMostPixels;
    int64_t blocks = (cut.total + most - 1) / most, parts = 1;
    // few pixels: every thread takes some of the output channels, and so reads the weights once between them
    if (blocks <= 2 * threads) parts = std::min<int64_t>(threads, panels(s.out));
    else blocks = (blocks + threads - 1) / threads * threads;
    const int64_t floats = scratch_floats(s, (cut.total + blocks - 1) / blocks);
    parallel_for(blocks * parts, 1, threads, [&](int64_t begin, int64_t end) {
        float* scratch = scratch_of(floats);
        for (int64_t item = begin; item < end; ++item) {
            // by parts first: a thread stays with its weights
            const int64_t part = item / blocks, block = item % blocks;
            EDM_DISPATCH(isa, convolve(s, cut, cut.total * block / blocks, cut.total * (block + 1) / blocks,
                                       panels(s.out) * part / parts, panels(s.out) * (part + 1) / parts, scratch));
        }
    });
    return kOk;
}

}  // namespace edm
