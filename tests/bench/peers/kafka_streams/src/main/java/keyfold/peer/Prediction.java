package keyfold.peer;

/** One prediction on its way out: about which record it is, and one value per output column. */
record Prediction(String topic, int partition, long offset, float[] values) {}
