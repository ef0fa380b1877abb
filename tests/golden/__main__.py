from tests.golden import FOLDER, recipes, resolved

for file in FOLDER.glob("*.yaml"):
    file.unlink()
for recipe in recipes():
    (FOLDER / f"{recipe}.yaml").write_text(resolved(recipe), encoding="utf-8")
