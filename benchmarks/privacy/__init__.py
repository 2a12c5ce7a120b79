"""Privacy measured: metric at equal epsilon, an audit of the noise, bytes and time of secure sums."""
