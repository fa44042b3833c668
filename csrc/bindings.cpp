// The door: arguments come in by name, addresses as integers; a status goes out as an exception. The GIL is released
// around the work.
#include <pybind11/pybind11.h>

#include <exception>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "arguments.h"
#include "common.h"
#include "cpu/_kernels.h"
#include "cpu/algorithms.h"
#include "cpu/simd/isas.h"
#include "solver_update.h"
#ifdef EDM_WITH_CUDA
#include "cuda/functions.h"
#endif

#ifndef EDM_SOURCES
#define EDM_SOURCES ""
#endif
#ifndef EDM_CUDA_STATUS
#define EDM_CUDA_STATUS ""
#endif

namespace py = pybind11;

namespace edm {
#ifdef EDM_WITH_CUDA
const char* cuda_error_text(int error);
#endif

namespace {

constexpr char kCapsule[] = "edm_fast native function";

std::string text_of(int status) {
    if (status == kBadArgument) return "bad argument";
    if (status == kBadType) return "element type not supported";
#ifdef EDM_WITH_CUDA
    if (status >= kCudaError) return cuda_error_text(status - kCudaError);
#endif
    return "status " + std::to_string(status);
}

// runs without the GIL; a bad status and what C++ throws are exceptions
template <typename F>
PyObject* run_without_gil(const char* name, F&& run) {
    std::string failure;
    PyThreadState* state = PyEval_SaveThread();
    try {
        if (const int status = run()) failure = text_of(status);
    } catch (const std::exception& error) {
        failure = error.what();
    }
    PyEval_RestoreThread(state);
    if (failure.empty()) Py_RETURN_NONE;
    return PyErr_Format(PyExc_RuntimeError, "%s: %s", name, failure.c_str());
}

PyObject* refuse_threads(const char* name, int threads) {
    return PyErr_Format(PyExc_RuntimeError, "%s: %d threads; expected 1 or more", name, threads);
}

// A call whose arguments are set, but for the number of threads.
struct BoundCall {
    const char* name;
    virtual ~BoundCall() = default;
    virtual int run(int threads) const = 0;
};

// Arguments as Python passes them, and what tells the address of an object that is no number, or null.
struct Given {
    PyObject *names, *const *values, *address_of;
};

// The struct, and what follows it: instruction set and number of threads on a CPU, device and stream on a GPU.
struct Arguments {
    static constexpr size_t kMost = 320;
    alignas(8) char s[kMost] = {};
    int place = 0, threads = 0;
    void* stream = nullptr;
};

// A native function as Python sees it.
class PythonFunction {
public:
    virtual ~PythonFunction() = default;
    virtual PyObject* call(const Given& given) const = 0;
    virtual BoundCall* bind(const Given&) const {
        return PyErr_Format(PyExc_TypeError, "%s() cannot be bound", name_), nullptr;
    }
    PyMethodDef method{};

protected:
    PythonFunction(const Function& function, std::vector<Field> more)
        : name_(function.name), fields_(function.fields(function.use)) {
        if (function.bytes > Arguments::kMost) throw std::length_error(function.name);
        fields_.insert(fields_.end(), more.begin(), more.end());
        for (const Field& field : fields_) interned_.push_back(PyUnicode_InternFromString(field.name.c_str()));
    }

    // sets the first `count` fields of `arguments`, which is zero; false with a Python exception
    bool fill(void* arguments, size_t count, const Given& given) const {
        uint64_t filled = 0;
        size_t next = 0;
        const Py_ssize_t number = given.names ? PyTuple_GET_SIZE(given.names) : 0;
        for (Py_ssize_t i = 0; i < number; ++i) {
            PyObject *name = PyTuple_GET_ITEM(given.names, i), *value = given.values[i];
            const size_t k = index_of(name, next, count);
            if (k == count) return PyErr_Format(PyExc_TypeError, "%s() has no argument %R", name_, name), false;
            if (value == Py_None && !fields_[k].required && fields_[k].kind == Kind::kPointer) continue;
            if (!set_field(fields_[k], arguments, value, given.address_of)) return false;
            filled |= uint64_t(1) << k, next = k + 1;
        }
        for (size_t k = 0; k < count; ++k) {
            if (!fields_[k].required || filled >> k & 1) continue;
            return PyErr_Format(PyExc_TypeError, "%s() needs the argument '%s'", name_, fields_[k].name.c_str()), false;
        }
        return true;
    }

    const char* name_;
    std::vector<Field> fields_;

private:
    // names mostly come in the order of the fields, and as the same objects
    size_t index_of(PyObject* name, size_t next, size_t count) const {
        for (size_t k = next; k < count; ++k)
            if (interned_[k] == name) return k;
        for (size_t k = 0; k < next && k < count; ++k)
            if (interned_[k] == name) return k;
        size_t k = 0;
        while (k < count && PyUnicode_Compare(interned_[k], name)) ++k;
        return k;
    }

    bool set_field(const Field& field, void* arguments, PyObject* object, PyObject* address_of) const {
        if (field.kind != Kind::kPointers && field.kind != Kind::kDoubles)
            return set_value(field, field.kind, arguments, object, address_of);
        const auto list = py::reinterpret_steal<py::object>(PySequence_Fast(object, ""));
        if (!list) return refuse(field, object, "a list");
        const Kind kind = field.kind == Kind::kPointers ? Kind::kPointer : Kind::kDouble;
        for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(list.ptr()); ++i)
            if (!set_value(field, kind, arguments, PySequence_Fast_GET_ITEM(list.ptr(), i), address_of)) return false;
        return true;
    }

    bool set_value(const Field& field, Kind kind, void* arguments, PyObject* object, PyObject* address_of) const {
        Value value;
        if (kind == Kind::kBool) {
            if (!PyBool_Check(object)) return refuse(field, object, "True or False");
            value.integer = object == Py_True;
        } else if (PyBool_Check(object)) {
            return refuse(field, object, "a number");
        } else if (kind == Kind::kDouble) {
            value.real = PyFloat_AsDouble(object);
            if (value.real == -1 && PyErr_Occurred()) return refuse(field, object, "a number");
        } else if (kind == Kind::kPointer) {
            const bool ask = address_of && object != Py_None && !PyLong_Check(object);
            const auto address = py::reinterpret_steal<py::object>(
                ask ? PyObject_CallOneArg(address_of, object) : Py_NewRef(object));
            if (!address) return false;
            value.address = PyLong_Check(address.ptr()) ? PyLong_AsVoidPtr(address.ptr()) : nullptr;
            if (!PyLong_Check(address.ptr()) || PyErr_Occurred()) return refuse(field, object, "an address");
        } else {
            value.integer = PyLong_AsLongLong(object);
            if (value.integer == -1 && PyErr_Occurred()) return refuse(field, object, "an integer");
            if (kind == Kind::kInt && value.integer != int(value.integer)) return refuse(field, object, "a small one");
        }
        return set(field, arguments, value) || refuse(field, object, "a shorter list");
    }

    bool refuse(const Field& field, PyObject* object, const char* expected) const {
        PyErr_Clear();
        const char* name = field.name.c_str();
        return PyErr_Format(PyExc_TypeError, "%s(): %s is %R; expected %s", name_, name, object, expected), false;
    }

    std::vector<PyObject*> interned_;
};

class CpuFunction : public PythonFunction {
    struct Bound : BoundCall {
        Arguments arguments;
        int (*run_)(const void*, int);
        int run(int threads) const override { return run_(arguments.s, threads); }
    };

    std::vector<decltype(Function::run)> runs_;  // one for each instruction set

public:
    explicit CpuFunction(int place)
        : PythonFunction(functions_of(0).first[place],
                         {{"isa", offsetof(Arguments, place), Kind::kInt, kAny, kNone},
                          {"threads", offsetof(Arguments, threads), Kind::kInt, kAny, kNone}}) {
        for (int isa = 0; isa < isa_count(); ++isa) runs_.push_back(functions_of(isa).first[place].run);
    }

    PyObject* call(const Given& given) const override {
        Arguments a;
        if (!fill(&a, fields_.size(), given)) return nullptr;
        if (a.threads < 1) return refuse_threads(name_, a.threads);
        const auto run = available(a.place) ? runs_[a.place] : [](const void*, int) { return int(kBadArgument); };
        return run_without_gil(name_, [&] { return run(a.s, a.threads); });
    }

    BoundCall* bind(const Given& given) const override {
        auto bound = std::make_unique<Bound>();
        if (!fill(&bound->arguments, fields_.size() - 1, given)) return nullptr;
        if (!available(bound->arguments.place))
            return PyErr_Format(PyExc_RuntimeError, "%s: no such instruction set", name_), nullptr;
        bound->name = name_, bound->run_ = runs_[bound->arguments.place];
        return bound.release();
    }
};

class SizeFunction : public PythonFunction {
    decltype(Function::size) size_;

public:
    explicit SizeFunction(const Function& function) : PythonFunction(function, {}), size_(function.size) {}

    PyObject* call(const Given& given) const override {
        Arguments a;
        return fill(&a, fields_.size(), given) ? PyLong_FromLongLong(size_(a.s)) : nullptr;
    }
};

class CudaFunction : public PythonFunction {
    decltype(Function::launch) launch_;

public:
    explicit CudaFunction(const Function& function)
        : PythonFunction(function, {{"device", offsetof(Arguments, place), Kind::kInt, kAny, kNone},
                                    {"stream", offsetof(Arguments, stream), Kind::kPointer, kAny, kNone}}),
          launch_(function.launch) {}

    PyObject* call(const Given& given) const override {
        Arguments a;
        if (!fill(&a, fields_.size(), given)) return nullptr;
        return run_without_gil(name_, [&] { return launch_(a.s, a.place, a.stream); });
    }
};

// function([address_of,] **arguments)
PyObject* call_function(PyObject* self, PyObject* const* values, Py_ssize_t positional, PyObject* names) {
    const auto* function = static_cast<PythonFunction*>(PyCapsule_GetPointer(self, kCapsule));
    if (positional > 1 || (positional && !PyCallable_Check(values[0])))
        return PyErr_Format(PyExc_TypeError, "%s() takes arguments by name", function->method.ml_name);
    return function->call({names, values + positional, positional ? values[0] : nullptr});
}

// What `bind` returns: called with the number of threads.
struct BoundObject {
    PyObject_HEAD
    BoundCall* call;
};

PyObject* call_bound(PyObject* self, PyObject* args, PyObject* kwargs) {
    const BoundCall& bound = *reinterpret_cast<BoundObject*>(self)->call;
    int threads = 0;
    if (kwargs || !PyArg_ParseTuple(args, "i", &threads))
        return PyErr_Format(PyExc_TypeError, "%s: a bound call takes the number of threads", bound.name);
    if (threads < 1) return refuse_threads(bound.name, threads);
    return run_without_gil(bound.name, [&] { return bound.run(threads); });
}

void delete_bound(PyObject* self) {
    PyTypeObject* type = Py_TYPE(self);
    delete reinterpret_cast<BoundObject*>(self)->call;
    type->tp_free(self);
    Py_DECREF(type);
}

PyType_Slot bound_slots[] = {{Py_tp_call, (void*)call_bound}, {Py_tp_dealloc, (void*)delete_bound}, {0, nullptr}};
PyType_Spec bound_spec{"edm_fast._C.Bound", sizeof(BoundObject), 0,
                       Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, bound_slots};
PyTypeObject* bound_type = nullptr;

// bind(function, **arguments)
PyObject* bind_function(PyObject*, PyObject* const* values, Py_ssize_t positional, PyObject* names) {
    PyObject* self = positional == 1 && PyCFunction_Check(values[0]) ? PyCFunction_GET_SELF(values[0]) : nullptr;
    if (!self || !PyCapsule_IsValid(self, kCapsule))
        return PyErr_Format(PyExc_TypeError, "bind() takes one native function and its arguments by name");
    const auto* function = static_cast<PythonFunction*>(PyCapsule_GetPointer(self, kCapsule));
    BoundCall* call = function->bind({names, values + 1, nullptr});
    auto* object = call ? PyObject_New(BoundObject, bound_type) : nullptr;
    if (object) object->call = call;
    else delete call;
    return reinterpret_cast<PyObject*>(object);
}

PyMethodDef bind_method{"bind", (PyCFunction)(void (*)())bind_function, METH_FASTCALL | METH_KEYWORDS, nullptr};

py::list algorithms() {
    py::list rows;
    for (const Algorithm& a : kAlgorithms)
        rows.append(py::dict(py::arg("name") = a.name, py::arg("rows") = a.tile.rows,
                             py::arg("columns") = a.tile.columns, py::arg("paired") = a.paired(),
                             py::arg("int16") = a.int16(), py::arg("packed") = a.packed,
                             py::arg("doubled") = a.doubled, py::arg("error") = a.error));
    return rows;
}

py::list isas() {
    py::list rows;
    for (int i = 0; i < isa_count(); ++i) {
        const Isa& isa = isa_at(i);
        rows.append(py::dict(py::arg("name") = isa.name, py::arg("available") = isa.available,
                             py::arg("registers") = isa.registers, py::arg("fma") = isa.fma,
                             py::arg("int16_dot") = isa.int16_dot, py::arg("pairs") = isa.pairs));
    }
    return rows;
}

// puts a native function into a module, which keeps it for ever
void define(py::module_& m, const char* name, PythonFunction* f) {
    f->method = {name, (PyCFunction)(void (*)())call_function, METH_FASTCALL | METH_KEYWORDS, nullptr};
    const auto self = py::reinterpret_steal<py::object>(PyCapsule_New(f, kCapsule, nullptr));
    m.attr(name) = py::reinterpret_steal<py::object>(PyCFunction_New(&f->method, self.ptr()));
}

}  // namespace
}  // namespace edm

PYBIND11_MODULE(_C, m) {
    using namespace edm;
    m.attr("MAX_TERMS") = int(kMaxTerms);
    m.attr("ISAS") = isas();
    m.attr("ALGORITHMS") = algorithms();
    m.attr("BEST_ISA") = best_isa();
    m.attr("SOURCES") = EDM_SOURCES;
    m.attr("CUDA_STATUS") = EDM_CUDA_STATUS;
    m.def("far_apart", [] { return far_apart(); });
    m.def("set_far_apart", [](int far) { set_far_apart(far); });
    m.def("thread_pool", [] { return std::string(thread_pool()); });
    bound_type = reinterpret_cast<PyTypeObject*>(PyType_FromSpec(&bound_spec));
    if (!bound_type) throw py::error_already_set();
    m.attr("bind") = py::reinterpret_steal<py::object>(PyCFunction_New(&bind_method, nullptr));
    const Functions functions = functions_of(0);
    for (int i = 0; i < functions.count; ++i) {
        const Function& f = functions.first[i];
        define(m, f.name, f.run ? static_cast<PythonFunction*>(new CpuFunction(i)) : new SizeFunction(f));
    }
#ifdef EDM_WITH_CUDA
    for (const Function& f : kCudaFunctions)
        define(m, f.name, f.launch ? static_cast<PythonFunction*>(new CudaFunction(f)) : new SizeFunction(f));
#endif
}
