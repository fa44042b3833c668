// The algorithms of a convolution. Each is one row of kAlgorithms; everything else follows from its fields, in C++ and
// in Python (native.ALGORITHMS). A new one takes a row and, where no other has its tile, the transform of a line of it
// in kernels/winograd.h.
#pragma once

#include <cstdint>
#include <iterator>

namespace edm {

// Outputs that are computed together: one, as a sum over kernel positions and channels, or those of Winograd's
// F(rows x columns, taps x taps) (Lavin & Gray 2016), from fewer products.
struct Tile {
    int rows, columns;
    float balance;  // what makes the size of a weight that of the tiles that its transform meets: the geometric mean,
                    // over the products, of the ratio of the norms of a row of G and one of B^T
};

enum class Products {
    kOrdinary,
    kPaired,  // in pairs of terms (_pairs.h): half as many for two thirds of the channels; infinities may become NaN
    kInt16,   // of scaled 16-bit integers, twice as many at a time with AVX512-VNNI: exact but for rounding to them
};

constexpr int64_t kMostInt16 = 4096;  // channels, see kernels/matmul_int16.h

struct Algorithm {
    const char* name;
    Tile tile;
    Products products;
    bool packed;        // the weight is transformed beforehand, by conv2d_pack_cpu; otherwise at each call, as the
                        // network stores it (the bits are the same)
    bool doubled;       // each pixel of x stands for 2x2 of them, padded by 1: four 2x2 convolutions of x
    const char* error;  // the error class, the first precision that allows it. "exact": the error of torch or less;
                        // "fp32": within thirty times that of torch; "bf16": less than rounding to bfloat16 costs

    constexpr bool paired() const { return products == Products::kPaired; }
    constexpr bool int16() const { return products == Products::kInt16; }
    constexpr bool transforms() const { return tile.rows > 1; }
    constexpr bool pointwise() const { return !transforms() && products != Products::kOrdinary; }
    constexpr bool has_kernel(int64_t kernel) const {
        return transforms() ? kernel == 3 : kernel == 1 || (kernel == 3 && !pointwise());
    }
    constexpr bool supports(int64_t in, int64_t kernel, int64_t padding) const {
        return has_kernel(kernel) && (!pointwise() || padding == 0) && (!doubled || padding == 1) &&
               (!int16() || in <= kMostInt16);
    }
    // of the filters that are transformed, and the products of a tile; without a transform: the kernel's positions
    constexpr int taps(int64_t kernel) const { return doubled ? 2 : int(kernel); }
    constexpr int64_t planes(int64_t kernel) const {
        return (tile.rows + taps(kernel) - 1) * (tile.columns + taps(kernel) - 1);
    }
    constexpr int64_t phases() const { return doubled ? 4 : 1; }
    constexpr bool same_transform(const Algorithm& other) const {
        return tile.rows == other.tile.rows && tile.columns == other.tile.columns && doubled == other.doubled;
    }
};

constexpr Tile kOne{1, 1, 1}, k2x2{2, 2, 0.66f * 0.66f}, k4x4{4, 4, 0.245f * 0.245f}, k4x8{4, 8, 0.245f * 0.054f};
// with the filters of 2x2 taps that a 3x3 one is merged to
constexpr Tile kMerged2x2{2, 2, 1.09f * 1.09f}, kMerged4x4{4, 4, 0.49f * 0.49f};
constexpr Tile kMerged4x8{4, 8, 0.49f * 0.11f};

inline constexpr Algorithm kAlgorithms[] = {
    // name                                 tile        products             packed doubled error
    {"direct",                              kOne,       Products::kOrdinary, true,  false, "exact"},
    {"direct-paired",                       kOne,       Products::kPaired,   true,  false, "exact"},
    {"direct-int16",                        kOne,       Products::kInt16,    true,  false, "bf16"},
    {"winograd2x2",                         k2x2,       Products::kOrdinary, true,  false, "exact"},
    {"winograd2x2-unpacked",                k2x2,       Products::kOrdinary, false, false, "exact"},
    {"winograd2x2-unpacked-paired",         k2x2,       Products::kPaired,   false, false, "exact"},
    {"winograd4x4",                         k4x4,       Products::kOrdinary, true,  false, "fp32"},
    {"winograd4x4-int16",                   k4x4,       Products::kInt16,    true,  false, "bf16"},
    {"winograd4x4-unpacked",                k4x4,       Products::kOrdinary, false, false, "fp32"},
    {"winograd4x4-unpacked-paired",         k4x4,       Products::kPaired,   false, false, "fp32"},
    {"winograd4x8-unpacked",                k4x8,       Products::kOrdinary, false, false, "fp32"},
    {"winograd4x8-unpacked-paired",         k4x8,       Products::kPaired,   false, false, "fp32"},
    {"winograd2x2-doubled",                 kMerged2x2, Products::kOrdinary, true,  true,  "exact"},
    {"winograd2x2-doubled-unpacked",        kMerged2x2, Products::kOrdinary, false, true,  "exact"},
    {"winograd2x2-doubled-unpacked-paired", kMerged2x2, Products::kPaired,   false, true,  "fp32"},  // a third more
    {"winograd4x4-doubled",                 kMerged4x4, Products::kOrdinary, true,  true,  "fp32"},
    {"winograd4x4-doubled-int16",           kMerged4x4, Products::kInt16,    true,  true,  "bf16"},
    {"winograd4x4-doubled-unpacked",        kMerged4x4, Products::kOrdinary, false, true,  "fp32"},
    {"winograd4x4-doubled-unpacked-paired", kMerged4x4, Products::kPaired,   false, true,  "fp32"},
    {"winograd4x8-doubled-unpacked",        kMerged4x8, Products::kOrdinary, false, true,  "fp32"},
    {"winograd4x8-doubled-unpacked-paired", kMerged4x8, Products::kPaired,   false, true,  "fp32"},
};

constexpr bool is_first_of_its_transform(size_t index) {
    for (size_t i = 0; i < index; ++i)
        if (kAlgorithms[i].same_transform(kAlgorithms[index])) return false;
    return true;
}

constexpr bool is_algorithm(int index) { return index >= 0 && size_t(index) < std::size(kAlgorithms); }

}  // namespace edm
