"""A member: site folder, keys, certificate, enrolment, and the `Edge` value that they make."""
