/**
 * Power cuts, the short matrix. Programs run over a storage that keeps a log; from the log come the states that a host may
 * leave: every prefix, and between two syncs any of the unsynced operations lost or torn at sectors. In each of them the image
 * opens, no table is wrong, what was flushed is there, and each byte is what it was at the last flush or what was written since.
 * `npm run test:crash` tries many more, and asks QEMU.
 */
import test from 'ava';
import { IMAGES } from '../crash/images';
import { CASES, runCase, statesIn } from '../crash/matrix';
import { KINDS } from '../crash/programs';
import { seedOf } from '../helpers/random';

for (const [index, image] of IMAGES.entries()) {
  test(`${image.name}: every power cut leaves a sound image with all that was flushed`, (t) => {
    const seed = seedOf(t, 500 + index);
    // A third of the kinds on each image, the others on the next two.
    const kinds = KINDS.filter((_, number) => (number + index) % 3 === 0);
    const cases = CASES.filter((found) => found.image === image && kinds.some(({ name }) => name === found.kind));
    t.is(cases.length, kinds.filter(({ suits }) => suits?.(image) !== false).length);
    let states = 0;
    let reopened = 0;
    for (const found of cases) {
      const outcome = runCase(found, seed, 1, { subsets: 1, exhaustive: 3, reopen: 0.05, ask: 0 });
      t.is(outcome.problem, undefined, `${found.kind}, seed ${seed}`);
      states += statesIn(outcome.coverage);
      reopened += outcome.reopened;
    }
    t.log(`${states} states, ${reopened} opened for writing`);
    t.true(states >= 40, `${states} states`);
  });

  const repairs = CASES.filter((found) => found.image === image && found.kind === 'repair after writes');
  for (const found of repairs) {
    test(`${image.name}: a power cut during a repair loses nothing, and the next repair ends it`, (t) => {
      const outcome = runCase(found, seedOf(t, 700 + index), 1, { subsets: 1, exhaustive: 3, reopen: 0.05, ask: 0 });
      t.is(outcome.problem, undefined);
    });
  }
}
