package keyfold.peer;

/** One event in the buffer, with its prediction once its wave ran. */
final class Event {

  final byte[] key;
  final float[] values; // one per column of the model
  final long timestamp; // ms, of the record
  final long offset;
  float[] output; // one per output column; null before its wave

  Event(byte[] key, float[] values, long timestamp, long offset) {
    this.key = key;
    this.values = values;
    this.timestamp = timestamp;
    this.offset = offset;
  }
}
