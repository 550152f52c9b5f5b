/**
 * Reads the TAP output of one ava. What counts is what the lines say, never what the run promised: a file that
 * dies half way has the tests that reported, and one failure for the file itself.
 */

export interface Failure {
  /** Test title, or what happened to the file. */
  name: string;
  /** Everything that was printed about it. */
  output: string[];
}

export interface TapResult {
  passed: number;
  /** Titles of tests that were marked to be skipped or done later. They count neither way. */
  skipped: string[];
  failures: Failure[];
}

/** A directive after the title: SKIP, or its sibling for tests that are only planned. */
const RESULT = /^(not )?ok \d+ - (.*?)( # [A-Z]{4}\b.*)?$/;
const REMAINING = /^# (\d+) tests? remaining in /;
/** The plan comes last: without it the reporter died. */
const PLAN = /^1\.\.\d+$/;

export function readTap(text: string, exitCode: number | null): TapResult {
  const result: TapResult = { passed: 0, skipped: [], failures: [] };
  let open: Failure | undefined;
  let planned = false;
  for (const line of text.split('\n')) {
    const match = RESULT.exec(line);
    const remaining = REMAINING.exec(line);
    if (match) {
      open = undefined;
      if (match[3] !== undefined) result.skipped.push(match[2]);
      else if (match[1] === undefined) result.passed++;
      else {
        open = { name: match[2], output: [] };
        result.failures.push(open);
      }
    } else if (remaining) {
      open = undefined;
      for (let n = 0; n < Number(remaining[1]); n++) {
        result.failures.push({ name: 'a test that never finished', output: [line.slice(2)] });
      }
    } else if (PLAN.test(line)) {
      open = undefined;
      planned = true;
    } else open?.output.push(line);
  }
  if (result.failures.length === 0) {
    const why = exitCode === null ? 'was killed' : `ended with exit code ${exitCode}`;
    if (!planned) result.failures.push({ name: `ava ${why} before its summary`, output: [] });
    else if (exitCode !== 0) result.failures.push({ name: `ava ${why}`, output: [] });
    else if (result.passed === 0) result.failures.push({ name: 'no test passed in this file', output: [] });
  }
  return result;
}
