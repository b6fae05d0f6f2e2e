// A call of the core without the interpreter's lock, which Python's signal handlers can end.
#pragma once

#include <cxxabi.h>
#include <pybind11/pybind11.h>
#include <unistd.h>

#include <atomic>
#include <csetjmp>
#include <stdexcept>

#include "../core/threads/runtime.h"

namespace rnnkern {

// Takes the interpreter's lock back. To a thread that asks for it after the interpreter has ended,
// CPython before 3.14 answers by unwinding the thread's stack, and what lies there would be freed
// without the lock: such a thread waits for the process to end, as it does from 3.14 on.
inline void take_lock(PyThreadState* state) {
  try {
    PyEval_RestoreThread(state);
  } catch (abi::__forced_unwind&) {
    for (;;) pause();
  }
}

// Ends the calls of this thread as Ctrl-C does, once it is true; null: nothing does.
inline thread_local const std::atomic<bool>* given_up = nullptr;

// The interpreter's lock, released for a call of the core. The call polls `asked`, which takes the
// lock and lets Python run its signal handlers, as the interpreter does between two instructions.
class ReleasedLock {
 public:
  ReleasedLock() : forks_(forks()), state_(PyEval_SaveThread()) {}
  ~ReleasedLock() {
    if (state_) take_lock(state_);
  }
  ReleasedLock(const ReleasedLock&) = delete;
  ReleasedLock& operator=(const ReleasedLock&) = delete;

  // Runs use(interrupt). What a handler raises (KeyboardInterrupt, on Ctrl-C) ends it and is thrown
  // on from here. A handler that forks leaves the child without the call's other threads, for which
  // the child would wait for ever: the child leaves the call at once, wherever it is.
  template <class Use>
  void run(const Use& use) {
    if (setjmp(child_) == 0) use(Interrupt{asked, this, &due_});
    if (state_) take_lock(state_);
    state_ = nullptr;
    if (raised_) throw pybind11::error_already_set();
    if (forks() != forks_)
      throw std::runtime_error(
          "a signal handler forked the process during this call: its results are lost");
  }

 private:
  static bool asked(void* context) {
    auto& self = *static_cast<ReleasedLock*>(context);
    if (self.raised_) return true;
    take_lock(self.state_);
    self.state_ = nullptr;
    if (given_up && *given_up) PyErr_SetNone(PyExc_KeyboardInterrupt);
    // The error waits in the thread's state.
    self.raised_ = PyErr_Occurred() || PyErr_CheckSignals() != 0;
    // The core's frames hold nothing that a destructor would have to free.
    if (forks() != self.forks_) std::longjmp(self.child_, 1);
    self.state_ = PyEval_SaveThread();
    return self.raised_;
  }

  int forks_;
  PyThreadState* state_;  // null: the lock is held
  std::int64_t due_ = 0;
  bool raised_ = false;
  std::jmp_buf child_;
};

// Runs use(interrupt) without the interpreter's lock. In threads other than Python's main one no
// handler ever runs. A signal that came before is answered first: it may have come late in another
// use of the same call, between which Python does not look.
template <class Use>
void unlocked(const Use& use) {
  if (PyErr_CheckSignals() != 0) throw pybind11::error_already_set();
  ReleasedLock lock;
  lock.run(use);
}

}  // namespace rnnkern
