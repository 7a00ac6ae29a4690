package keyfold.peer;

import ai.onnxruntime.OnnxJavaType;
import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OrtEnvironment;
import ai.onnxruntime.OrtException;
import ai.onnxruntime.OrtSession;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.FloatBuffer;
import java.util.HashMap;
import java.util.Map;

/**
 * The step graph on up to {@code maxRows} rows of one event each, without a copy or an allocation
 * of tensors per run: the inputs and the pinned outputs lie in direct buffers that are made once,
 * and the tensors over their first rows are made when a number of rows is first seen.
 *
 * <p>Each state has two buffers. A run reads one and writes the other, then they change places, so
 * that the next wave goes on from the states that this one left, row by row.
 */
final class Step {

  private final OrtEnvironment environment = OrtEnvironment.getEnvironment();
  private final OrtSession session;
  private final Manifest manifest;
  private final int features;
  private final FloatBuffer x; // (rows, 1, features)
  private final ByteBuffer lengths; // (rows), all 1
  private final FloatBuffer y; // (rows, 1, outputs)
  private final ByteBuffer[][] states; // [side][state]: (rows, dims...)
  private final byte[] cold;
  private final Bound[][] bound; // [side that is read][rows]
  private int side;

  /** The tensors of one number of rows. */
  private record Bound(Map<String, OnnxTensor> inputs, Map<String, OnnxTensor> outputs) {}

  Step(Settings settings, Manifest manifest, int maxRows) throws OrtException {
    this.manifest = manifest;
    features = settings.features().size();
    OrtSession.SessionOptions options = new OrtSession.SessionOptions();
    options.setIntraOpNumThreads(1);
    options.setInterOpNumThreads(1);
    session = environment.createSession(settings.model().toString(), options);
    x = direct(maxRows * features).asFloatBuffer();
    y = direct(maxRows * manifest.outputs().size()).asFloatBuffer();
    lengths = direct(maxRows);
    for (int row = 0; row < maxRows; row++) {
      lengths.putInt(row * Integer.BYTES, 1);
    }
    states = new ByteBuffer[2][manifest.states().size()];
    for (int i = 0; i < manifest.states().size(); i++) {
      states[0][i] = direct(maxRows * manifest.states().get(i).floats());
      states[1][i] = direct(maxRows * manifest.states().get(i).floats());
    }
    cold = coldState(manifest);
    bound = new Bound[2][maxRows + 1];
  }

  void setEvent(int row, float[] values) {
    x.put(row * features, values);
  }

  /** Puts a key's state into a row; null: the key has none yet. */
  void setState(int row, byte[] state) {
    byte[] from = state == null ? cold : state;
    int offset = 0;
    for (int i = 0; i < states[side].length; i++) {
      int size = manifest.states().get(i).floats() * Float.BYTES;
      states[side][i].put(row * size, from, offset, size);
      offset += size;
    }
  }

  /** Runs the first {@code rows} rows; their states are then those after the event. */
  void run(int rows) throws OrtException {
    if (bound[side][rows] == null) {
      bound[side][rows] = bind(rows);
    }
    Bound tensors = bound[side][rows];
    session.run(tensors.inputs(), tensors.outputs()).close();
    side = 1 - side;
  }

  byte[] state(int row) {
    byte[] state = new byte[cold.length];
    int offset = 0;
    for (int i = 0; i < states[side].length; i++) {
      int size = manifest.states().get(i).floats() * Float.BYTES;
      states[side][i].get(row * size, state, offset, size);
      offset += size;
    }
    return state;
  }

  float[] output(int row) {
    float[] values = new float[manifest.outputs().size()];
    y.get(row * values.length, values);
    return values;
  }

  private Bound bind(int rows) throws OrtException {
    Map<String, OnnxTensor> inputs = new HashMap<>();
    Map<String, OnnxTensor> outputs = new HashMap<>();
    int columns = manifest.outputs().size();
    inputs.put("x", floats(x.slice(0, rows * features), rows, 1, features));
    ByteBuffer ones = lengths.slice(0, rows * Integer.BYTES).order(ByteOrder.nativeOrder());
    long[] shape = {rows};
    inputs.put(
        "lengths", OnnxTensor.createTensor(environment, ones, shape, OnnxJavaType.INT32));
    outputs.put("y", floats(y.slice(0, rows * columns), rows, 1, columns));
    for (int i = 0; i < manifest.states().size(); i++) {
      Manifest.State state = manifest.states().get(i);
      inputs.put(state.input(), stateTensor(side, i, rows));
      outputs.put(state.output(), stateTensor(1 - side, i, rows));
    }
    return new Bound(inputs, outputs);
  }

  private OnnxTensor stateTensor(int of, int i, int rows) throws OrtException {
    Manifest.State state = manifest.states().get(i);
    long[] shape = new long[state.dims().length + 1];
    shape[0] = rows;
    for (int axis = 0; axis < state.dims().length; axis++) {
      shape[axis + 1] = state.dims()[axis];
    }
    ByteBuffer part = states[of][i].slice(0, rows * state.floats() * Float.BYTES);
    return floats(part.order(ByteOrder.nativeOrder()).asFloatBuffer(), shape);
  }

  private OnnxTensor floats(FloatBuffer values, long... shape) throws OrtException {
    return OnnxTensor.createTensor(environment, values, shape);
  }

  private static ByteBuffer direct(int numbers) {
    return ByteBuffer.allocateDirect(numbers * Float.BYTES).order(ByteOrder.nativeOrder());
  }

  private static byte[] coldState(Manifest manifest) {
    ByteBuffer cold = ByteBuffer.allocate(manifest.stateBytes()).order(ByteOrder.nativeOrder());
    for (Manifest.State state : manifest.states()) {
      for (int i = 0; i < state.floats(); i++) {
        cold.putFloat(state.initial());
      }
    }
    return cold.array();
  }
}
