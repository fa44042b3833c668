// Argument structs from names and values; comes after csrc/arguments.h.
#pragma once

#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace edm {

using NamedValues = std::vector<std::pair<std::string, Value>>;  // an array's values one by one

// a number, perhaps an address; whichever the field needs is taken
inline Value value_of(double number, void* address) { return {int64_t(number), number, address}; }

template <typename S>
S filled(Use use, const NamedValues& values) {
    S s{};
    std::vector<Field> fields = fields_of<S>(use);
    for (const auto& [name, value] : values) {
        bool found = false;
        for (Field& field : fields)
            if (field.name == name) found = set(field, &s, value), field.required = kNone;
        if (!found) throw std::invalid_argument("no argument " + name);
    }
    for (const Field& field : fields)
        if (field.required) throw std::invalid_argument("needs " + field.name);
    return s;
}

}  // namespace edm
