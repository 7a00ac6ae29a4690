// The extension module keyfold.worker.native._codec.
//
// Owns the table of functions and what becomes of C++'s errors. No object is kept beyond a call, and
// no Python code runs within one once its arguments are taken.
#include <exception>

#include "functions.h"

namespace keyfold {

namespace {

using Function = PyObject* (*)(PyObject* const*, Py_ssize_t);

// C++ has one error of its own here, that a vector cannot grow.
template <Function function>
PyObject* guarded(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
    try {
        return function(arguments, count);
    } catch (const std::exception&) {
        return PyErr_NoMemory();
    }
}

template <Function function> PyMethodDef method(const char* name, const char* doc) {
    return {name, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(guarded<function>)),
            METH_FASTCALL, doc};
}

constexpr char kDoc[] = "See keyfold.worker.native.";

PyMethodDef methods[] = {
    method<parse_records_of>("parse_records", kDoc),
    method<cut_of>("cut", kDoc),
    method<pack_records_of>("pack_records", kDoc),
    method<read_numbers_of>("read_numbers", kDoc),
    method<write_predictions_of>("write_predictions", kDoc),
    method<find_of>("find", kDoc),
    method<crc32c_of>("crc32c", kDoc),
    method<write_states_of>("write_states", kDoc),
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef_Slot slots[] = {{0, nullptr}};

PyModuleDef module = {
    PyModuleDef_HEAD_INIT,
    "_codec",
    "Record sets, JSON numbers and predictions as bytes; see keyfold.worker.native.",
    0,
    methods,
    slots,
    nullptr,
    nullptr,
    nullptr,
};

}  // namespace

}  // namespace keyfold

PyMODINIT_FUNC PyInit__codec() { return PyModuleDef_Init(&keyfold::module); }
