/** Names that a stranger has put into an image: how they are shown. What they may open: `gate.test.ts`. */
import test from 'ava';
import { infoText } from '../../../src/block/info';
import { snapshotLines } from '../../../src/block/info-text';
import { visible } from '../../../src/errors';

test('names in an image cannot move the cursor of a terminal, nor make two lines of a message', (t) => {
  const name = 'a\nb\u001b[2J\u202e\u009b';
  const bad = /[\p{Cc}\p{Bidi_Control}]/u;
  t.is(visible(name), 'a\\x0ab\\x1b[2J\\u202e\\x9b');
  const info = { filename: 'a', format: 'qed', 'virtual-size': 1, 'actual-size': 1, 'dirty-flag': false };
  const lines = infoText({ ...info, 'backing-filename': name })
    .trimEnd()
    .split('\n');
  t.is(lines.length, 5);
  for (const line of lines) t.notRegex(line, bad);
  const clock = { 'date-sec': 0, 'date-nsec': 0, 'vm-clock-sec': 0, 'vm-clock-nsec': 0, 'vm-state-size': 0 };
  for (const line of snapshotLines([{ ...clock, id: name, name }])) t.notRegex(line, bad);
});
