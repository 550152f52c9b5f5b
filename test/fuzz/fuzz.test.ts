/** A few hundred cases of `npm run fuzz`, and what earlier runs of it have found. */
import test, { type ExecutionContext } from 'ava';
import { runBatch } from './batch';
import { KINDS, type Kind } from './seeds';

/** Of each kind. */
const CASES = 30;

async function clean(t: ExecutionContext, kind: Kind, seed: number, indexes: number[]): Promise<void> {
  const report = await runBatch({ kind, seed, indexes });
  for (const { index, step, problem, story } of report.findings) {
    t.fail(`npm run fuzz -- --kind ${kind} --seed ${seed} --case ${index}: ${story.join('; ')}: ${step}: ${problem}`);
  }
  t.is(report.cases, indexes.length);
}

for (const kind of KINDS) {
  test(`${kind}: a damaged image gives answers or errors, and nothing else`, async (t) => {
    await clean(
      t,
      kind,
      20,
      Array.from({ length: CASES }, (_, index) => index),
    );
  });
}
