// A call of the core without the interpreter's lock, which Python's signals can end.
#pragma once

#include <pybind11/pybind11.h>

#include "../core/problem.h"

namespace rnnkern {

// Runs use(interrupt) without the interpreter's lock. The core asks `interrupt` now and then; it
// takes the lock and lets Python run its signal handlers, as the interpreter itself does between
// two instructions. What a handler raises (KeyboardInterrupt, on Ctrl-C) ends the call and is
// thrown on from here. In threads other than Python's main one no handler ever runs.
template <class Use>
void unlocked(const Use& use) {
  struct Lock {
    PyThreadState* state = PyEval_SaveThread();
    bool raised = false;
    static bool asked(void* context) {
      auto& lock = *static_cast<Lock*>(context);
      PyEval_RestoreThread(lock.state);
      lock.raised = PyErr_CheckSignals() != 0;  // the error waits in the thread's state
      lock.state = PyEval_SaveThread();
      return lock.raised;
    }
  };
  Lock lock;
  use(Interrupt{Lock::asked, &lock});
  PyEval_RestoreThread(lock.state);
  if (lock.raised) throw pybind11::error_already_set();
}

}  // namespace rnnkern
