// Every native function and its arguments by name: how Python, and the programs of the tests, fill the structs.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "attention.h"
#include "conv2d.h"
#include "group_norm_silu.h"
#include "solver_update.h"
#include "upfirdn.h"

namespace edm {

enum class Kind { kInt, kInt64, kDouble, kBool, kPointer, kDoubles, kPointers };  // the last two: arrays

template <typename T>
constexpr Kind kind_of() {
    if (std::is_same_v<T, int>) return Kind::kInt;
    if (std::is_same_v<T, int64_t>) return Kind::kInt64;
    if (std::is_same_v<T, bool>) return Kind::kBool;
    if (std::is_array_v<T>) return std::is_pointer_v<std::remove_extent_t<T>> ? Kind::kPointers : Kind::kDoubles;
    static_assert(sizeof(T) == 8 || std::is_same_v<T, int> || std::is_same_v<T, bool> || std::is_array_v<T>);
    return std::is_pointer_v<T> ? Kind::kPointer : Kind::kDouble;
}

// which functions of an op an argument belongs to; kSize: those that tell the size of a buffer
enum Use : unsigned { kNone = 0, kForward = 1, kBackward = 2, kCuda = 4, kSize = 8, kAny = 15 };

struct Field {
    std::string name;
    size_t offset;
    Kind kind;
    unsigned required, optional;  // by which functions; what is left out is 0
    size_t most = 1, count = 0;   // of an array: its length, and the offset of the number of its values
};

// the name of a member: without _ptr, and that of a nested one with _ for the dot
inline std::string field_name(std::string member) {
    if (member.size() > 4 && member.compare(member.size() - 4, 4, "_ptr") == 0) member.resize(member.size() - 4);
    for (char& letter : member) letter = letter == '.' ? '_' : letter;
    return member;
}

inline Field array_field(Field field, size_t most, size_t count) {
    field.most = most, field.count = count;
    return field;
}

#define FIELD(required, optional, member, name) \
    Field { name, offsetof(S, member), kind_of<decltype(std::declval<S>().member)>(), required, optional }
#define BOTH(required, optional, member) FIELD(required, optional, member, field_name(#member))
#define MUST(uses, member) BOTH(uses, kNone, member)
#define MAY(uses, member) BOTH(kNone, uses, member)
#define LIST(uses, member, counter) array_field(MAY(uses, member), kMaxTerms, offsetof(S, counter))

template <typename S>
std::vector<Field> fields();

template <>
inline std::vector<Field> fields<Attention>() {
    using S = Attention;
    return {MUST(kAny, dtype), MUST(kAny, qkv_ptr), MUST(kAny, a_ptr), BOTH(kBackward, kForward, stats_ptr),
            MUST(kBackward, da_ptr), MUST(kBackward, dqkv_ptr),
            MUST(kAny, n), MUST(kAny, heads), MUST(kAny, channels), MUST(kAny, pixels),
            MUST(kAny, qkv.image), MUST(kAny, qkv.head), MUST(kAny, qkv.which), MUST(kAny, qkv.channel),
            MUST(kAny, qkv.pixel), MUST(kAny, a.image), MUST(kAny, a.head), MUST(kAny, a.channel), MUST(kAny, a.pixel)};
}

template <>
inline std::vector<Field> fields<Conv2d>() {
    using S = Conv2d;
    return {MUST(kForward, dtype), MUST(kAny, algorithm), MUST(kForward, y_ptr), MUST(kForward, x_ptr),
            MUST(kForward, weight_ptr), MAY(kForward, bias_ptr), MAY(kForward, residual_ptr),
            MUST(kAny, n), MUST(kAny, h), MUST(kAny, w), FIELD(kAny, kNone, in, "inputs"),
            FIELD(kForward, kNone, out, "outputs"), MUST(kAny, kernel), MUST(kAny, padding), MAY(kForward, bias_rows),
            MUST(kForward, y_pitch), MUST(kForward, x_pitch), MAY(kForward, residual_pitch), MUST(kForward, scale),
            MAY(kForward, workspace_ptr), MAY(kForward, transposed), MAY(kForward, affine_ptr), MAY(kForward, silu),
            MAY(kForward, balance_ptr)};
}

template <>
inline std::vector<Field> fields<Conv2dPack>() {
    using S = Conv2dPack;
    return {MUST(kForward, dtype), MUST(kAny, algorithm), MUST(kForward, packed_ptr), MUST(kForward, weight_ptr),
            FIELD(kAny, kNone, out, "outputs"), FIELD(kAny, kNone, in, "inputs"), MUST(kAny, kernel),
            MAY(kAny, transposed)};
}

template <>
inline std::vector<Field> fields<Conv2dBwd>() {
    using S = Conv2dBwd;
    return {MUST(kBackward, dtype), MUST(kBackward, dweight_ptr), MUST(kBackward, x_ptr), MUST(kBackward, dy_ptr),
            MUST(kBackward, workspace_ptr), MUST(kAny, n), MUST(kAny, h), MUST(kAny, w),
            FIELD(kAny, kNone, in, "inputs"), FIELD(kAny, kNone, out, "outputs"), MUST(kAny, padding)};
}

template <>
inline std::vector<Field> fields<GroupNormSilu>() {
    using S = GroupNormSilu;
    return {MUST(kAny, dtype), MUST(kAny, x_ptr), BOTH(kCuda, kForward, y_ptr),
            BOTH(kForward | kBackward, kCuda, stats_ptr), MUST(kAny, weight_ptr), MUST(kAny, bias_ptr),
            MAY(kAny, scale_ptr), MAY(kAny, shift_ptr), MUST(kBackward, dy_ptr), MUST(kBackward, dx_ptr),
            MUST(kBackward, dparams_ptr), MUST(kAny, n), MUST(kAny, c), MUST(kAny, space), MUST(kAny, groups),
            MAY(kAny, scale_rows), MAY(kAny, shift_rows), MUST(kAny, eps), MUST(kAny, silu), MUST(kAny, channels_last),
            MUST(kForward | kCuda, x_pitch), MAY(kCuda, workspace_ptr), MAY(kForward, affine_ptr)};
}

template <>
inline std::vector<Field> fields<SolverUpdate>() {
    using S = SolverUpdate;
    return {MUST(kAny, dtype), MUST(kAny, y_ptr), MAY(kAny, d_ptr), MUST(kAny, base_ptr), MAY(kAny, x_ptr),
            MAY(kAny, D_ptr), MAY(kAny, noise_ptr), LIST(kAny, terms_ptr, num_terms), LIST(kAny, weights, num_weights),
            MUST(kAny, p), MUST(kAny, q), MUST(kAny, t), MUST(kAny, a), MUST(kAny, h), MUST(kAny, w), MUST(kAny, c),
            MUST(kAny, size)};
}

template <>
inline std::vector<Field> fields<Upfirdn>() {
    using S = Upfirdn;
    return {MUST(kAny, dtype), MUST(kAny, y_ptr), MUST(kAny, x_ptr), MUST(kAny, f_ptr), MUST(kAny, n), MUST(kAny, c),
            MUST(kAny, h), MUST(kAny, w), MUST(kAny, out_h), MUST(kAny, out_w), MUST(kAny, taps), MUST(kAny, factor),
            MUST(kAny, padding), MUST(kAny, gain), MUST(kAny, up), MUST(kAny, channels_last), MUST(kAny, x_pitch)};
}

#undef FIELD
#undef BOTH
#undef MUST
#undef MAY
#undef LIST

// the fields that one function reads
template <typename S>
std::vector<Field> fields_of(Use use) {
    std::vector<Field> own;
    for (Field& field : fields<S>())
        if ((field.required | field.optional) & use) own.push_back(std::move(field)), own.back().required &= use;
    return own;
}

struct Value {  // of the kind that the field is
    int64_t integer = 0;
    double real = 0;
    void* address = nullptr;
};

// sets a field of `arguments`, or appends to an array; false: the array is full
inline bool set(const Field& field, void* arguments, const Value& value) {
    char *start = static_cast<char*>(arguments), *at = start + field.offset;
    switch (field.kind) {
        case Kind::kInt: *reinterpret_cast<int*>(at) = int(value.integer); return true;
        case Kind::kInt64: *reinterpret_cast<int64_t*>(at) = value.integer; return true;
        case Kind::kDouble: *reinterpret_cast<double*>(at) = value.real; return true;
        case Kind::kBool: *reinterpret_cast<bool*>(at) = value.integer != 0; return true;
        case Kind::kPointer: *reinterpret_cast<void**>(at) = value.address; return true;
        default: break;
    }
    int& count = *reinterpret_cast<int*>(start + field.count);
    if (size_t(count) == field.most) return false;
    if (field.kind == Kind::kDoubles) reinterpret_cast<double*>(at)[count++] = value.real;
    else reinterpret_cast<void**>(at)[count++] = value.address;
    return true;
}

// visit(name, use, function) for every function that runs on a CPU, with the instruction set and the number of threads
template <typename F>
void cpu_functions(F&& visit) {
    visit("attention_fwd_cpu", kForward, attention_fwd_cpu);
    visit("attention_bwd_cpu", kBackward, attention_bwd_cpu);
    visit("conv2d_pack_cpu", kForward, conv2d_pack_cpu);
    visit("conv2d_fwd_cpu", kForward, conv2d_fwd_cpu);
    visit("conv2d_bwd_cpu", kBackward, conv2d_bwd_cpu);
    visit("group_norm_silu_fwd_cpu", kForward, group_norm_silu_fwd_cpu);
    visit("group_norm_silu_bwd_cpu", kBackward, group_norm_silu_bwd_cpu);
    visit("solver_update_fwd_cpu", kForward, solver_update_fwd_cpu);
    visit("upfirdn_fwd_cpu", kForward, upfirdn_fwd_cpu);
}

// likewise on a GPU, with the device and the stream
template <typename F>
void cuda_functions(F&& visit) {
    visit("group_norm_silu_fwd_cuda", kCuda, group_norm_silu_fwd_cuda);
    visit("solver_update_fwd_cuda", kCuda, solver_update_fwd_cuda);
    visit("upfirdn_fwd_cuda", kCuda, upfirdn_fwd_cuda);
}

// and those that tell the size of a buffer
template <typename F>
void size_functions(F&& visit) {
    visit("conv2d_packed_size", kSize, conv2d_packed_size);
    visit("conv2d_fwd_workspace", kSize, conv2d_fwd_workspace);
    visit("conv2d_bwd_workspace", kSize, conv2d_bwd_workspace);
}

template <typename F>
void cuda_size_functions(F&& visit) {
    visit("group_norm_silu_fwd_workspace_cuda", kCuda, group_norm_silu_fwd_workspace_cuda);
}

}  // namespace edm
