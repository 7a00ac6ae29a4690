package keyfold.peer;

import ai.onnxruntime.OrtException;
import java.util.ArrayList;
import java.util.Comparator;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import org.apache.kafka.common.utils.Bytes;
import org.apache.kafka.streams.state.KeyValueStore;

/**
 * Folds many events at once: the k-th events of all keys are one wave, and a wave is one session
 * run. The keys with the most events come first, so that the rows of a wave are the first rows of
 * the one before it, and states stay where the graph left them until a key's last event.
 */
final class Waves {

  private static final Comparator<List<Event>> LONGEST_FIRST =
      Comparator.<List<Event>>comparingInt(List::size).reversed();

  private final Step step;
  private final int maxRows;
  private final Map<Bytes, List<Event>> byKey = new HashMap<>();

  Waves(Step step, int maxRows) {
    this.step = step;
    this.maxRows = maxRows;
  }

  /** Sets each event's output and moves its key's state in {@code states} past it. */
  void run(List<Event> events, KeyValueStore<byte[], byte[]> states) {
    byKey.clear();
    for (Event event : events) {
      byKey.computeIfAbsent(Bytes.wrap(event.key), key -> new ArrayList<>(4)).add(event);
    }
    List<List<Event>> keys = new ArrayList<>(byKey.values());
    keys.sort(LONGEST_FIRST);
    for (int begin = 0; begin < keys.size(); begin += maxRows) {
      try {
        fold(keys.subList(begin, Math.min(begin + maxRows, keys.size())), states);
      } catch (OrtException error) {
        throw new IllegalStateException("the step graph failed", error);
      }
    }
  }

  private void fold(List<List<Event>> keys, KeyValueStore<byte[], byte[]> states)
      throws OrtException {
    for (int row = 0; row < keys.size(); row++) {
      step.setState(row, states.get(keys.get(row).get(0).key));
    }
    int rows = keys.size();
    for (int wave = 0; rows > 0; wave++) {
      for (int row = 0; row < rows; row++) {
        step.setEvent(row, keys.get(row).get(wave).values);
      }
      step.run(rows);
      for (int row = 0; row < rows; row++) {
        keys.get(row).get(wave).output = step.output(row);
      }
      while (rows > 0 && keys.get(rows - 1).size() == wave + 1) { // it was the key's last event
        rows--;
        states.put(keys.get(rows).get(0).key, step.state(rows));
      }
    }
  }
}
