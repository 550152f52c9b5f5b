/** A few hundred cases of `npm run fuzz`, and what longer runs of it have found. */
import test from 'ava';
import { runBatch } from './batch';
import { KINDS } from './seeds';

/** Of each kind. */
const CASES = 25;
const SEED = 20;

test('damaged images of every kind give answers or errors, and nothing else', async (t) => {
  const cases = Array.from({ length: CASES }, (_, index) => KINDS.map((kind) => `${kind}:${index}`)).flat();
  const report = await runBatch({ seed: SEED, cases });
  for (const { name, step, problem, story } of report.findings) {
    t.fail(
      `npm run fuzz -- --kind ${name.replace(':', ' --case ')} --seed ${SEED}: ${story.join('; ')}: ${step}: ${problem}`,
    );
  }
  t.is(report.cases, 250);
  // Most are damaged so little that they open: otherwise only the header would be tried.
  t.true(report.opened > 100, `${report.opened} opened`);
});
