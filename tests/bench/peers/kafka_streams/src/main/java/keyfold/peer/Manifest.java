package keyfold.peer;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.IOException;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;

/** What the bundle's manifest says about the step graph: its states and its outputs' names. */
record Manifest(List<State> states, List<String> outputs) {

  /** One tensor of a key's state: an input of the graph, and the output with its next value. */
  record State(String input, String output, int[] dims, int floats, float initial) {}

  static Manifest read(Path path) throws IOException {
    JsonNode root = new ObjectMapper().readTree(path.toFile());
    List<State> states = new ArrayList<>();
    for (JsonNode state : root.required("states")) {
      if (!state.required("dtype").asText().equals("float32")) {
        throw new IllegalArgumentException(
            path + ": states: expected float32, got " + state.get("dtype").asText());
      }
      int[] dims = new int[state.required("dims").size()];
      int floats = 1;
      for (int axis = 0; axis < dims.length; axis++) {
        dims[axis] = state.get("dims").get(axis).asInt();
        floats *= dims[axis];
      }
      states.add(
          new State(
              state.required("input").asText(),
              state.required("output").asText(),
              dims,
              floats,
              (float) state.required("initial").asDouble()));
    }
    List<String> outputs = new ArrayList<>();
    root.required("outputs").required("names").forEach(name -> outputs.add(name.asText()));
    return new Manifest(List.copyOf(states), List.copyOf(outputs));
  }

  /** Returns the bytes of one key's state: all its tensors, one after the other. */
  int stateBytes() {
    return Float.BYTES * states.stream().mapToInt(State::floats).sum();
  }
}
