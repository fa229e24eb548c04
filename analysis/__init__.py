"""From a run store to a diagnosis: detectors, causes and reports."""
