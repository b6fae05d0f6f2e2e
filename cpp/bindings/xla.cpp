// Functions of Python as XLA's foreign functions, by XLA's C interface for those
// (xla/ffi/api/c_api.h in jaxlib), of which this file declares what it uses.
//
// The structures are those of major version 0. XLA's header says that later minor versions only
// append fields, and that a change of what is there increments the major version.
#include <array>
#include <atomic>
#include <chrono>
#include <thread>

#include "../core/threads/runtime.h"
#include "layer.h"

namespace rnnkern {
namespace {

constexpr int kMajor = 0;
constexpr int kMetadata = 1;  // an extension of a call frame by which XLA asks for the version
constexpr int kString = 4;    // a kind of attribute
enum Code : int { kCancelled = 1, kInvalidArgument = 3, kResourceExhausted = 8, kInternal = 13 };

struct XlaError;
struct ErrorArguments {
  std::size_t struct_size;
  void* extension;
  const char* message;
  int code;
};
struct Version {
  std::size_t struct_size;
  void* extension;
  int major, minor;
};
struct Api {  // its beginning
  std::size_t struct_size;
  void* extension;
  Version version;
  const void* internal;
  XlaError* (*create_error)(ErrorArguments*);
};
struct Metadata {  // its beginning
  std::size_t struct_size;
  Version version;
};
struct Extension {
  std::size_t struct_size;
  int type;
  void* next;
  Metadata* metadata;
};
struct Buffer {  // dense and row-major
  std::size_t struct_size;
  void* extension;
  int dtype;
  void* data;
  std::int64_t rank;
  const std::int64_t* dims;
};
struct Text {
  const char* data;
  std::size_t size;
};
template <class Item>
struct Items {
  std::size_t struct_size;
  void* extension;
  std::int64_t size;
  const int* types;
  Item** items;
};
struct Attributes {
  std::size_t struct_size;
  void* extension;
  std::int64_t size;
  const int* types;
  Text** names;
  void** items;
};
struct Frame {
  std::size_t struct_size;
  const Extension* extension;
  const Api* api;
  void* context;
  int stage;
  Items<Buffer> operands, results;
  Attributes attributes;
};
using Handler = XlaError*(Frame*);

// When the process ends, Python gives its lock to no other thread, and then JAX waits for XLA's
// threads: a call must not ask for the lock then. The order of these two ensures it: a call first
// counts itself, then looks whether calls are refused.
std::atomic<Index> calls{0};  // that have the lock, wait for it, or are about to be refused
std::atomic<bool> refused{false};
const char* const kRefused = "rnnkern.jax: calls are refused: Python ends";

class Call {
 public:
  Call() {
    ++calls;
    given_up = &refused;
  }
  ~Call() {
    given_up = nullptr;
    if (forks_ == forks()) --calls;  // a child has counted anew
  }
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

 private:
  int forks_ = forks();
};

XlaError* failure(const Api& api, Code code, const std::string& message) {
  ErrorArguments arguments{sizeof(ErrorArguments), nullptr, message.c_str(), code};
  return api.create_error(&arguments);
}

// Say that a function is one of XLA's own version, if the structures here are those of it.
XlaError* answer_version(const Frame& frame) {
  const Version& own = frame.api->version;
  if (own.major != kMajor)
    return failure(*frame.api, kInternal,
                   "rnnkern.jax: expected major version " + std::to_string(kMajor) +
                       " of XLA's foreign functions, got " + std::to_string(own.major));
  Version& version = frame.extension->metadata->version;
  version.major = own.major, version.minor = own.minor;
  return nullptr;
}

py::dtype dtype_of(int type) {  // XLA_FFI_DataType
  switch (type) {
    case 1:
      return py::dtype::of<bool>();
    case 4:
      return py::dtype::of<std::int32_t>();
    case 8:
      return py::dtype::of<std::uint32_t>();
    case 11:
      return py::dtype::of<float>();
    case 12:
      return py::dtype::of<double>();
    default:
      bad_type("XLA's buffer", "bool, int32, uint32, float32 or float64",
               "type " + std::to_string(type));
  }
}

// Arrays of XLA's memory, which are valid during the call alone.
py::list arrays_of(const Items<Buffer>& buffers, bool writable) {
  using numpy_api = py::detail::npy_api;
  const numpy_api& numpy = numpy_api::get();
  py::list arrays(static_cast<std::size_t>(buffers.size));
  for (std::int64_t k = 0; k < buffers.size; ++k) {
    const Buffer& buffer = *buffers.items[k];
    const int flags = py::array::c_style | numpy_api::NPY_ARRAY_ALIGNED_ |
                      (writable ? numpy_api::NPY_ARRAY_WRITEABLE_ : 0);
    PyObject* array = numpy.PyArray_NewFromDescr_(
        numpy.PyArray_Type_, dtype_of(buffer.dtype).release().ptr(), static_cast<int>(buffer.rank),
        reinterpret_cast<const Py_intptr_t*>(buffer.dims), nullptr, buffer.data, flags, nullptr);
    if (!array) throw py::error_already_set();
    PyList_SET_ITEM(arrays.ptr(), k, array);
  }
  return arrays;
}

XlaError* failure(const Api& api, const py::error_already_set& error) {
  Code code = kInternal;
  if (error.matches(PyExc_TypeError) || error.matches(PyExc_ValueError)) code = kInvalidArgument;
  if (error.matches(PyExc_MemoryError)) code = kResourceExhausted;
  if (error.matches(PyExc_KeyboardInterrupt)) code = kCancelled;
  std::string message;
  try {
    message = py::str(error.value());
  } catch (const py::error_already_set&) {  // the error's own text cannot be had
  }
  if (message.empty()) message = reinterpret_cast<PyTypeObject*>(error.type().ptr())->tp_name;
  return failure(api, code, message);
}

std::array<PyObject*, 2> functions{};  // XLA calls them as long as the process runs
std::size_t functions_count = 0;

// What XLA calls, in a thread of its own. A handler has no data, hence one for each function.
template <std::size_t k>
XlaError* handle(Frame* frame) {
  const Api& api = *frame->api;
  if (frame->extension && frame->extension->type == kMetadata) return answer_version(*frame);
  const Call call;
  if (refused) return failure(api, kCancelled, kRefused);
  const py::gil_scoped_acquire lock;
  try {  // nothing can be thrown into XLA
    const Attributes& attributes = frame->attributes;
    if (attributes.size != 1 || attributes.types[0] != kString)
      bad_value("attributes of the call", "one text", std::to_string(attributes.size));
    const Text& text = *static_cast<const Text*>(attributes.items[0]);
    const py::handle function(functions[k]);
    function(py::bytes(text.data, text.size), arrays_of(frame->operands, false),
             arrays_of(frame->results, true));
  } catch (const py::error_already_set& error) {
    return refused ? failure(api, kCancelled, kRefused) : failure(api, error);
  } catch (const std::exception& error) {
    return failure(api, kInternal, error.what());
  }
  return nullptr;
}
constexpr std::array<Handler*, 2> kHandlers = {handle<0>, handle<1>};

// The address of a handler that calls function(text, operands, results).
std::uintptr_t xla_handler(const py::function& function) {
  if (functions_count == kHandlers.size())
    bad_value("function", "at most " + std::to_string(kHandlers.size()) + " functions", "another");
  functions[functions_count] = py::object(function).release().ptr();
  return reinterpret_cast<std::uintptr_t>(kHandlers[functions_count++]);
}

// A signal is handled after this, so that none ends the wait.
void refuse_xla_calls() {
  refused = true;
  const py::gil_scoped_release unlocked;
  while (calls) std::this_thread::sleep_for(std::chrono::milliseconds(1));
}

}  // namespace

void bind_xla(py::module_& m) {
  pthread_atfork(nullptr, nullptr, [] { calls = 0; });
  m.def("xla_handler", &xla_handler, py::arg("function"));
  m.def("refuse_xla_calls", &refuse_xla_calls,
        "Refuse XLA's calls from now on, end those that run, and wait until they have ended.");
}

}  // namespace rnnkern
