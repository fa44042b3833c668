// Cuts a convolution into blocks of outputs (tiles of them for Winograd) times ranges of output channels, of which each
// thread takes some. How the work is cut never changes a sum, so neither the number of threads nor the batch does.
#include <algorithm>

#include "_kernels.h"
#include "_layout.h"
#include "_scratch.h"
#include "_weights.h"
#include "simd/isas.h"

namespace edm {
namespace {

// floats of one plane of one panel
int64_t plane_floats(const Algorithm& algorithm, int64_t in) {
    if (algorithm.paired()) return paired_panel(in);
    return algorithm.int16() ? int16_panel(in) : in * kPanel;
}

// floats of scratch for `block` tiles or pixels
int64_t scratch_floats(const Conv2d& s, int64_t block) {
    const Algorithm& algorithm = kAlgorithms[s.algorithm];
    const int64_t pitch = row_pitch(s.in), q = int16_pitch(s.in) / 2;
    if (!algorithm.transforms()) {
        if (algorithm.int16()) return block * (kPanel + 1 + q);
        return kMostPixels * kPanel + (algorithm.paired() ? block * (tile_pitch(algorithm, s.in) + 1) : 0);
    }
    const int64_t count = algorithm.planes(s.kernel);
    const int64_t sums = count * spread(block * kPanel);
    if (algorithm.int16()) return sums + count * (block * (1 + q) + pitch);
    return sums + block * spread(count * pitch);
}

bool supports(const Conv2d& s) {
    return is_algorithm(s.algorithm) && kAlgorithms[s.algorithm].supports(s.in, s.kernel, s.padding);
}

bool fits(const Conv2d& s, int isa) {
    if (!supports(s)) return false;
    const Algorithm& algorithm = kAlgorithms[s.algorithm];
    return s.n >= 0 && s.h > 0 && s.w > 0 && s.in > 0 && s.out > 0 && s.padding >= 0 &&
           s.h + 2 * s.padding >= s.kernel && s.w + 2 * s.padding >= s.kernel &&
           (s.bias_ptr ? s.bias_rows == 1 || s.bias_rows == s.n : s.bias_rows == 0) && s.x_pitch >= s.in &&
           s.y_pitch >= s.out && (!s.residual_ptr || s.residual_pitch >= s.out) &&
           (algorithm.packed ? !s.transposed && !s.affine_ptr
                             : s.workspace_ptr && (!algorithm.paired() || s.balance_ptr)) &&
           available(isa);
}

// Unpacked weights, for one phase: tiles are transformed a chunk at a time, then multiplied with a panel of output
// channels at a time, whose weights are transformed for it.
void convolve_unpacked(const Conv2d& s, const Cut& cut, Phase phase, const Conv2dKernels& kernels, int threads) {
    const auto multiply = kAlgorithms[s.algorithm].paired() ? kernels.multiply_tiles_in_pairs : kernels.multiply_tiles;
    const Chunks chunks(s, cut.total, threads);
    const Filters filters{static_cast<const float*>(s.weight_ptr), s.out, s.in, 9, s.transposed};
    const int64_t v_floats = chunks.tiles * chunks.tile;
    const int64_t floats = chunks.planes * spread(chunks.tiles * kPanel) + 9 * kDepth * kPanel + 10 * kPlaneStep;
    const int64_t image_floats = s.affine_ptr ? s.h * s.w * row_pitch(s.in) : 0;
    const int64_t chunk_count = (cut.total + chunks.tiles - 1) / chunks.tiles;
    const auto alone = [&](int64_t first, int64_t last, int64_t first_panel, int64_t last_panel) {
        float *v = scratch_of(v_floats + floats + image_floats), *scratch = v + v_floats, *image = scratch + floats;
        for (int64_t chunk = first; chunk < last; ++chunk) {
            const int64_t base = chunk * chunks.tiles, tiles = std::min(chunks.tiles, cut.total - base);
            kernels.read_tiles(s, cut, phase, base, 0, tiles, chunks, v, image);
            for (int64_t panel = first_panel; panel < last_panel; ++panel)
                multiply(s, filters, cut, phase, base, 0, tiles, chunks, panel, v, scratch);
        }
    };
    if (!chunks.shared)
        return parallel_for(chunk_count, 1, threads,
                            [&](int64_t begin, int64_t end) { alone(begin, end, 0, panels(s.out)); });
    // each transforms all tiles rather than write where the other reads
    if (threads == 2 && panels(s.out) > 1 && far_apart())
        return parallel_for(panels(s.out), 1, 2,
                            [&](int64_t begin, int64_t end) { alone(0, chunk_count, begin, end); });
    // more threads than panels share the tiles of one, and each transforms the weights for itself
    const int64_t parts = std::max<int64_t>(1, std::min(threads / panels(s.out), chunks.tiles / kTileGroup));
    float* v = static_cast<float*>(s.workspace_ptr);
    for (int64_t base = 0; base < cut.total; base += chunks.tiles) {
        const int64_t count = std::min(chunks.tiles, cut.total - base);
        parallel_for(count, 1, threads, [&](int64_t begin, int64_t end) {
            float* image = scratch_of(image_floats);
            kernels.read_tiles(s, cut, phase, base, begin, end, chunks, v, image);
        });
        parallel_for(panels(s.out) * parts, 1, threads, [&](int64_t begin, int64_t end) {
            float* scratch = scratch_of(floats);
            for (int64_t item = begin; item < end; ++item) {
                const int64_t panel = item / parts, part = item % parts;
                multiply(s, filters, cut, phase, base, count * part / parts,
                                                 count * (part + 1) / parts, chunks, panel, v, scratch);
            }
        });
    }
}

}  // namespace

int64_t conv2d_packed_size(const Conv2dPack& s) {
    if (!is_algorithm(s.algorithm) || !kAlgorithms[s.algorithm].has_kernel(s.kernel)) return -1;
    const Algorithm& algorithm = kAlgorithms[s.algorithm];
    const int64_t out = s.transposed ? s.in : s.out, in = s.transposed ? s.out : s.in;
    const int64_t planes = algorithm.packed ? panels(out) * algorithm.phases() * algorithm.planes(s.kernel) : 0;
    return planes * plane_floats(algorithm, in) + (algorithm.paired() ? Balance::floats(in, out) : 0);
}

int64_t conv2d_fwd_workspace(const Conv2d& s) {
    if (!supports(s)) return -1;
    if (kAlgorithms[s.algorithm].packed || s.n < 1) return 0;
    const Chunks chunks(s, Cut(s).total, 0);
    return chunks.tiles * chunks.tile;
}

int conv2d_pack_cpu(const Conv2dPack& s, int isa, int threads) {
    if (s.dtype != kFloat32) return kBadType;
    if (!available(isa) || !is_algorithm(s.algorithm)) return kBadArgument;
    const Algorithm& algorithm = kAlgorithms[s.algorithm];
    const bool packed = algorithm.packed, paired = algorithm.paired();
    const int64_t out = s.transposed ? s.in : s.out, in = s.transposed ? s.out : s.in;
    if (!algorithm.has_kernel(s.kernel) || out < 1 || in < 1 || (algorithm.int16() && in > kMostInt16) ||
        (!packed && !paired) || (s.transposed && algorithm.doubled))
        return kBadArgument;
    const int64_t before = packed ? panels(out) * plane_floats(algorithm, in) : 0;
    Balance balance(paired ? static_cast<float*>(s.packed_ptr) + before : nullptr, in, out);
    if (paired) {
        const Filters filters{static_cast<const float*>(s.weight_ptr), out, in, int(s.kernel * s.kernel), s.transposed};
        parallel_for(in, 16, threads, [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i) balance.set_channel(filters, i, packed ? in : kDepth);
        });
        parallel_for(padded(out), 16, threads, [&](int64_t begin, int64_t end) {
            for (int64_t o = begin; o < end; ++o) balance.set_output(filters, o, algorithm.tile.balance);
        });
    }
    if (!packed) return kOk;
    const Conv2dKernels& kernels = kernels_of(isa).conv2d;
    parallel_for(panels(out) * algorithm.phases(), 1, threads, [&](int64_t begin, int64_t end) {
        for (int64_t item = begin; item < end; ++item) {
            const Phase phase = phase_of(algorithm, item / panels(out));
            kernels.pack_panel(s, phase, item % panels(out), algorithm.planes(s.kernel), out, in, balance);
        }
    });
    return kOk;
}

int conv2d_fwd_cpu(const Conv2d& s, int isa, int threads) {
    if (s.dtype != kFloat32) return kBadType;
    if (!fits(s, isa)) return kBadArgument;
    if (s.n == 0) return kOk;
    const Conv2dKernels& kernels = kernels_of(isa).conv2d;
    const Cut cut(s);
    const Algorithm& algorithm = kAlgorithms[s.algorithm];
    if (!algorithm.packed) {
        for (int p = 0; p < algorithm.phases(); ++p)
            convolve_unpacked(s, cut, phase_of(algorithm, p), kernels, threads);
        return kOk;
    }
    const int64_t most = algorithm.transforms() ? kMostTiles : kMostPixels;
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
            kernels.convolve(s, cut, cut.total * block / blocks, cut.total * (block + 1) / blocks,
                                       panels(s.out) * part / parts, panels(s.out) * (part + 1) / parts, scratch);
        }
    });
    return kOk;
}

}  // namespace edm
