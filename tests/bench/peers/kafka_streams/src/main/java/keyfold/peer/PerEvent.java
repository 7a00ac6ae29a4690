package keyfold.peer;

import ai.onnxruntime.OrtException;
import org.apache.kafka.streams.processor.api.Processor;
import org.apache.kafka.streams.processor.api.ProcessorContext;
import org.apache.kafka.streams.processor.api.Record;
import org.apache.kafka.streams.processor.api.RecordMetadata;
import org.apache.kafka.streams.state.KeyValueStore;

/**
 * The plain way: for each event the key's state from the store, one session run of one row, the
 * new state into the store, the prediction forwarded.
 *
 * <p>At least once: after a crash the events since the last commit come again, and are folded into
 * states that the changelog may hold as they were after some of those events. The predictions
 * from there on can differ from the fold of the log. Only exactly_once_v2 (PEER_GUARANTEE)
 * prevents that.
 */
final class PerEvent implements Processor<byte[], float[], byte[], Prediction> {

  private final Step step;
  private ProcessorContext<byte[], Prediction> context;
  private KeyValueStore<byte[], byte[]> states;

  PerEvent(Step step) {
    this.step = step;
  }

  @Override
  public void init(ProcessorContext<byte[], Prediction> context) {
    this.context = context;
    states = context.getStateStore(Peer.STATES);
  }

  @Override
  public void process(Record<byte[], float[]> event) {
    if (event.key() == null || event.value() == null) {
      return; // as the DSL does with a record without a key
    }
    step.setState(0, states.get(event.key()));
    step.setEvent(0, event.value());
    try {
      step.run(1);
    } catch (OrtException error) {
      throw new IllegalStateException("the step graph failed", error);
    }
    states.put(event.key(), step.state(0));
    RecordMetadata about = context.recordMetadata().orElseThrow();
    context.forward(
        event.withValue(
            new Prediction(about.topic(), about.partition(), about.offset(), step.output(0))));
  }
}
