"""How two recipes differ is told so that one sees it."""

from sid_scale.inputs_changed import differences


def test_the_setting_that_differs_is_named_however_deep_it_lies():
    def recipe(steps: int) -> dict:
        network = {"channels": list(range(200)), "steps": steps}
        return {"made_by": network, "images": 5}

    assert differences(recipe(1), recipe(1)) == []
    assert differences(recipe(1), recipe(2)) == ["made_by.steps 1 there, 2 now"]
    assert differences({"images": 5, "made_by": None}, {"made_by": {"steps": 2}}) == [
        'made_by null there, {"steps": 2} now'
    ]


def test_what_is_no_recipe_has_nothing_of_it():
    assert differences([1], {"images": 5}) == ["images null there, 5 now"]
