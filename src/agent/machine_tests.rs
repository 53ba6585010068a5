//! Tests of the pod's state machine.
